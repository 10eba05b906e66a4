import pytest
import torch

from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.models.slot_search import find_slots
from tests.support.slow_cases import slow_cases
from tests.support.tiny_models import FAMILIES, plainly, same, some_queries, swept, tiny

QUERIES = some_queries()
SOME = ("llama", "gpt2", "gemma2", "bloom", "mixtral")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_plain_models_answers_from_every_block_on(family):
    model = tiny(family)
    sweeper = Sweeper(model, QUERIES)
    expected = plainly(model, QUERIES)

    assert sweeper.mode == FAMILIES[family][2], sweeper.describe()["fallbacks"]
    answers = [swept(sweeper, QUERIES, block) for block in range(len(find_slots(model).blocks) + 1)]
    assert same(answers[0], expected)
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("family", [*SOME, *slow_cases(*(family for family in FAMILIES if family not in SOME))])
def test_padded_rows_and_whole_passes_are_exact_on_every_family(family):
    model = tiny(family)
    expected = plainly(model, QUERIES)

    for mode in ("padded", "whole"):
        sweeper = Sweeper(model, QUERIES, mode=mode)
        assert sweeper.mode == mode
        assert same(swept(sweeper, QUERIES, 2), expected)
