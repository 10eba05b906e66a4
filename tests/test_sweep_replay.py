"""What cells share of their edited block, and what the last block leaves out."""

from contextlib import contextmanager

import pytest
import torch

from lrbench.evaluate.sweep.scoring import Tally
from lrbench.evaluate.sweep.sweeper import Sweeper
from lrbench.models.edit import edited
from lrbench.models.slots import find_slots
from tests.tiny_models import FAMILIES, plainly, same, some_queries, tiny

QUERIES = some_queries(2)[::2]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def scored(sweeper, block, slots=(), factor=1.0, modules=None):
    """Answers with some slots scaled, remembering what precedes them unless told otherwise."""
    tally = Tally(len(QUERIES))
    names = tuple(slot.module_name for slot in slots) if modules is None else modules
    for part in sweeper.parts:
        states = sweeper.advance(part, block)
        with edited({slot: slot.read() * factor for slot in slots}):
            sweeper.score(part, block, states, tally, names)
    return tally.answers()


@contextmanager
def counting(module):
    """Counts a module's calls."""
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_weight_of_every_block_an_edit_that_changes_nothing_is_the_baseline_bit_for_bit(family):
    model = tiny(family)
    sweeper = Sweeper(model, QUERIES)
    assert sweeper.remembers
    baseline = scored(sweeper, 0)
    assert same(baseline, plainly(model, QUERIES))

    for slot in find_slots(model).slots:
        block = slot.about.layer
        if block is None:
            continue
        scored(sweeper, block, [slot], -1.0)  # what another edit's pass remembered
        assert scored(sweeper, block, [slot]) == baseline, slot.name
        assert scored(sweeper, block, [slot]) == baseline, slot.name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cells_numbers_are_the_same_first_last_and_alone(family):
    model = tiny(family)
    slots = [slot for slot in find_slots(model).slots if slot.about.layer in (1, 3)]
    shared = Sweeper(model, QUERIES)

    for slot in slots:
        block = slot.about.layer
        first, second = (scored(shared, block, [slot], factor) for factor in (0.5, -1.5))
        assert scored(shared, block, [slot], -1.5) == second
        assert scored(shared, block, [slot], 0.5) == first
        assert scored(shared, block, [slot], 0.5, modules=()) == first, slot.name
        assert first != second


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma2", "falcon_rotary", "bloom", "mixtral"])
def test_several_weights_of_a_block_edited_at_once_share_what_comes_before_the_first(family):
    model = tiny(family)
    sweeper = Sweeper(model, QUERIES)
    for layer in (0, 3):
        slots = [slot for slot in find_slots(model).slots if slot.about.layer == layer]
        for chosen in (slots, slots[1:], slots[-2:], slots[::2], slots[::-1][::3]):
            scored(sweeper, layer, chosen, -0.5)
            remembered = scored(sweeper, layer, chosen, 0.7)
            assert remembered == scored(sweeper, layer, chosen, 0.7, modules=())
