"""What cells share of their edited block, and what the last block leaves out."""

import pytest
import torch

from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.models.edit import edited
from lrbench.models.factored_layers import factored
from lrbench.models.slot_search import find_slots
from lrbench.reducers.factors import LowRank
from lrbench.reduction.plan import Cell
from tests.support.tiny_models import FAMILIES, plainly, query, same, some_queries, tiny

#: The rest differ from these in nothing that the tricks tested here look at, as far as is known.
TELLING = ("llama", "gemma2", "bloom", "mixtral")
EVERY = [pytest.param(name, marks=() if name in TELLING else pytest.mark.slow) for name in FAMILIES]
QUERIES = some_queries(2)[::2]
EVEN = [query([n, *range(20, 32)], [n + 1, n + 2]) for n in range(24)]  # batches of the same size
TOKEN = 32 * 4  # bytes of its hidden states


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def scored(sweeper, block, slots=(), factor=1.0, modules=None):
    """Answers with some slots scaled, remembering what precedes them unless told otherwise."""
    tally = Tally(len(sweeper._queries))
    names = tuple(slot.module_name for slot in slots) if modules is None else modules
    for part in sweeper.parts:
        states = sweeper.advance(part, block)
        with edited({slot: slot.read() * factor for slot in slots}):
            sweeper.score(part, block, states, tally, names)
    return tally.answers()


def counted(module):
    """A list that grows with each time a module's own forward runs."""
    calls = []
    forward = module.forward

    def counting(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = counting
    return calls


@pytest.fixture
def model():
    return tiny("llama")


@pytest.mark.parametrize("family", EVERY)
def test_of_every_weight_of_every_block_an_edit_that_changes_nothing_is_the_baseline_bit_for_bit(family):
    model = tiny(family)
    sweeper = Sweeper(model, QUERIES)
    assert sweeper.replays
    baseline = scored(sweeper, 0)
    assert same(baseline, plainly(model, QUERIES))

    for slot in find_slots(model).slots:
        block = slot.about.layer
        if block is None:
            continue
        scored(sweeper, block, [slot], -1.0)  # what another edit's pass remembered
        assert scored(sweeper, block, [slot]) == baseline, slot.name


@pytest.mark.parametrize("family", EVERY)
def test_a_cells_numbers_are_the_same_first_last_and_alone(family):
    model = tiny(family)
    slots = [slot for slot in find_slots(model).slots if slot.about.layer in (1, 3)][::3]
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


def test_editing_a_weight_leaves_out_what_cannot_depend_on_it(model):
    sweeper = Sweeper(model, QUERIES)
    block = find_slots(model).blocks[1]
    called = {name: counted(module) for name, module in block.named_modules() if name.endswith(("proj", "attn"))}

    def computed(name):
        (slot,) = (slot for slot in find_slots(model).slots if slot.name == f"model.layers.1.{name}.weight")
        scored(sweeper, 1, [slot], 0.5)
        for calls in called.values():
            calls.clear()
        scored(sweeper, 1, [slot], 0.25)
        return {name for name, calls in called.items() if calls}

    assert computed("mlp.down_proj") == {"mlp.down_proj"}
    assert computed("mlp.up_proj") == {"mlp.up_proj", "mlp.down_proj"}
    mlp = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert computed("self_attn.o_proj") == {"self_attn.o_proj", *mlp}
    assert computed("self_attn.q_proj") == {"self_attn", "self_attn.q_proj", "self_attn.o_proj", *mlp}


def test_of_parallel_branches_the_one_that_is_not_edited_stands_aside():
    model = tiny("gptj")
    sweeper = Sweeper(model, QUERIES)
    block = find_slots(model).blocks[2]
    mlp, attention = counted(block.mlp), counted(block.attn)

    for module, idle in ((block.attn.v_proj, mlp), (block.mlp.fc_in, attention)):
        (slot,) = (slot for slot in find_slots(model).slots if slot.module is module)
        scored(sweeper, 2, [slot], 0.5)
        idle.clear()
        scored(sweeper, 2, [slot], 0.25)
        assert not idle


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.0])
def test_memos_keep_to_what_the_frontier_leaves_of_the_budget_and_change_nothing(model, share):
    """First the attention of every batch, which saves most for its bytes, then the rest of what precedes the edit."""
    slots = [slot for slot in find_slots(model).slots if slot.name == "model.layers.2.mlp.down_proj.weight"]
    roomy = Sweeper(model, EVEN, tokens=64)
    expected = scored(roomy, 2, slots, 0.5)
    batches = roomy.parts[0].batches
    states = sum(batch.ids.numel() for batch in batches) * TOKEN
    full = roomy._cache.bytes
    assert len(batches) > 5
    assert full > 2 * states

    tight = Sweeper(model, EVEN, tokens=64, frontier_bytes=states + int(share * full))

    assert len(tight.parts) == 1
    for _ in range(2):
        assert scored(tight, 2, slots, 0.5) == expected
        assert tight._cache.bytes <= share * full
    attention, gate = counted(model.model.layers[2].self_attn), counted(model.model.layers[2].mlp.gate_proj)
    scored(tight, 2, slots, 0.5)
    some = range(1, len(batches))
    assert len(attention) in {1.0: [0], 0.5: [0], 0.2: some, 0.0: [len(batches)]}[share]
    assert len(gate) in {1.0: [0], 0.5: some, 0.2: [len(batches)], 0.0: [len(batches)]}[share]


def test_where_requests_go_in_parts_memos_have_their_half_of_the_budget(model):
    slots = [slot for slot in find_slots(model).slots if slot.name == "model.layers.2.mlp.down_proj.weight"]
    expected = scored(Sweeper(model, EVEN, tokens=64), 2, slots, 0.5)
    budget = 200 * TOKEN
    apart = Sweeper(model, EVEN, tokens=64, frontier_bytes=budget)
    assert len(apart.parts) > 1

    assert scored(apart, 2, slots, 0.5) == expected
    assert (
        0
        < apart._cache.bytes
        <= budget - max(sum(batch.ids.numel() for batch in part.batches) * TOKEN for part in apart.parts)
    )


def test_memos_are_forgotten_when_the_frontier_moves_and_when_another_weight_is_edited(model):
    sweeper = Sweeper(model, QUERIES)
    by_name = {slot.name.removeprefix("model.layers."): slot for slot in find_slots(model).slots}
    scored(sweeper, 1, [by_name["1.mlp.down_proj.weight"]], 0.5)
    of_down = sweeper._cache.bytes
    scored(sweeper, 1, [by_name["1.self_attn.o_proj.weight"]], 0.5)
    assert 0 < sweeper._cache.bytes < of_down

    sweeper.advance(sweeper.parts[0], 2)

    assert sweeper._cache.bytes == 0


@pytest.mark.parametrize("family", EVERY)
def test_the_frontier_moves_up_by_what_cells_remembered_and_comes_to_the_same_bit_for_bit(family):
    model = tiny(family)
    fresh, moved = Sweeper(model, QUERIES), Sweeper(model, QUERIES)
    (part,) = moved.parts
    remembered = 0
    for block, target in ((0, 1), (1, 3), (3, 4)):  # from tokens, past a block, and behind the last
        for slot in [slot for slot in find_slots(model).slots if slot.about.layer == block]:
            scored(moved, block, [slot], -0.5)
            remembered += moved._cache.bytes
            states = [state.clone() for state in moved.advance(part, target)]
            for mine, plain in zip(states, fresh.advance(fresh.parts[0], target), strict=True):
                assert torch.equal(mine, plain), slot.name
            fresh._frontier.drop()
    assert remembered


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_what_a_cell_ran_as_factors_is_in_no_later_cell(model, name):
    """A layer of factors stands in the place of the edited module, and is gone when its cell is scored."""
    plain, sweeper = Sweeper(model, QUERIES), Sweeper(model, QUERIES)
    (part,) = sweeper.parts
    (slot,) = (slot for slot in find_slots(model).slots if slot.name == f"model.layers.1.{name}.weight")
    (after,) = (slot for slot in find_slots(model).slots if slot.name == "model.layers.2.mlp.up_proj.weight")
    weight = slot.read()
    halves = [LowRank(weight[:, :8].clone(), torch.eye(8, weight.shape[1]) * scale) for scale in (1.0, 3.0)]

    def answers(sweeper, factors, modules):
        tally = Tally(len(QUERIES))
        part = sweeper.parts[0]
        states = sweeper.advance(part, 1)
        with factored(model, {slot: factors}):
            sweeper.score(part, 1, states, tally, modules)
        return tally.answers()

    scored(sweeper, 1, [slot], 0.5)  # a matrix, and what it replays
    found = [answers(sweeper, factors, (slot.module_name,)) for factors in halves * 2]
    assert found[:2] == found[2:] == [answers(plain, factors, ()) for factors in halves]
    assert found[0] != found[1]
    assert scored(sweeper, 2, [after], 0.5) == scored(plain, 2, [after], 0.5)
    for mine, other in zip(sweeper.advance(part, 4), plain.advance(plain.parts[0], 4), strict=True):
        assert torch.equal(mine, other)


def test_how_a_block_computes_is_found_out_once_for_all_parts(model, monkeypatch):
    sweeper = Sweeper(model, EVEN, tokens=64, frontier_bytes=200 * TOKEN)
    assert len(sweeper.parts) > 2
    asked = []
    recipes = sweeper._passes.recipes
    monkeypatch.setattr(sweeper._passes, "recipes", lambda *given: asked.append(given[1]) or recipes(*given))
    slots = {slot.name: slot for slot in find_slots(model).slots}
    for name in ("1.mlp.down_proj", "1.mlp.up_proj", "2.mlp.down_proj", "1.mlp.down_proj"):
        scored(sweeper, int(name[0]), [slots[f"model.layers.{name}.weight"]], 0.5)
    assert asked == [1, 1, 2]


def test_moving_the_frontier_up_computes_only_what_the_last_edit_left_open(model):
    sweeper = Sweeper(model, QUERIES)
    block = find_slots(model).blocks[1]
    (slot,) = (slot for slot in find_slots(model).slots if slot.name == "model.layers.1.mlp.down_proj.weight")
    scored(sweeper, 1, [slot], 0.5)
    attention, gate, down = (counted(module) for module in (block.self_attn, block.mlp.gate_proj, block.mlp.down_proj))

    sweeper.advance(sweeper.parts[0], 2)

    assert not attention
    assert not gate
    assert len(down) == len(sweeper.parts[0].batches)


def test_what_was_edited_below_the_named_modules_is_never_replayed(model):
    """An embedding is edited with a block: the engine is told of no modules, and replays nothing."""
    slots = [slot for slot in find_slots(model).slots if slot.about.role == "embed" or slot.about.layer == 0]
    sweeper = Sweeper(model, QUERIES)

    scored(sweeper, 0, slots, 0.5, modules=Cell(slots=tuple(slots), first_block=0).first_modules)

    assert sweeper._cache.bytes == 0


def test_a_cell_names_the_modules_that_it_edits_in_its_first_block(model):
    slots = {slot.name: slot for slot in find_slots(model).slots}
    down, later = slots["model.layers.1.mlp.down_proj.weight"], slots["model.layers.2.mlp.down_proj.weight"]
    head, embed = slots["lm_head.weight"], slots["model.embed_tokens.weight"]

    assert Cell(slots=(later, down, head), first_block=1).first_modules == ("model.layers.1.mlp.down_proj",)
    assert Cell(slots=(down, embed), first_block=0).first_modules == ()
    assert Cell(slots=(head,), first_block=4).first_modules == ()
    assert Cell().first_modules == ()


def test_the_last_block_computes_only_where_something_is_asked(model):
    sweeper = Sweeper(model, QUERIES)
    assert sweeper.describe()["last_block_only_where_asked"]
    blocks = find_slots(model).blocks
    seen = {}
    for place in (2, 3):
        forward = blocks[place].mlp.down_proj.forward

        def counts(x, forward=forward, place=place):
            seen[place] = seen.get(place, 0) + x.shape[:-1].numel()
            return forward(x)

        blocks[place].mlp.down_proj.forward = counts
    trimmed = scored(sweeper, 0)
    positions = sum(batch.ids.numel() for batch in sweeper.parts[0].batches)
    asked = sum(len(batch.scored) for batch in sweeper.parts[0].batches)
    assert seen[2] == positions
    assert asked <= seen[3] < positions
    sweeper._passes.trim = False

    assert same(scored(sweeper, 0), trimmed)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_is_trimmed_and_gives_the_same_answers_without(family):
    model = tiny(family)
    sweeper = Sweeper(model, QUERIES)
    trimmed = scored(sweeper, 2)
    last = find_slots(model).blocks[-1]
    inside = [module for module in sweeper._passes.trimmed if any(module is one for one in last.modules())]

    assert sweeper._passes.trim
    assert inside
    sweeper._passes.trim = False
    assert same(scored(sweeper, 2), trimmed)
