import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrbench.errors import EvaluationError
from lrbench.evaluation.sweep.batches import BatchLayout, make_batches
from lrbench.evaluation.sweep.prefix_trees import Costs, grow
from lrbench.evaluation.sweep.queries import make_queries
from lrbench.evaluation.sweep.sweeper import Sweeper
from tests.support.tiny_models import VOCABULARY, plainly, query, same, swept, tiny

LONGEST = 12
CPU = torch.device("cpu")
CHEAP = Costs(token=1000.0, pair=1.0, longest=128)

few_tokens = st.integers(0, 2)  # so that many requests begin alike
contexts = st.lists(few_tokens, min_size=1, max_size=20)
continuations = st.lists(few_tokens, min_size=1, max_size=LONGEST)
requests = st.lists(st.tuples(st.none(), contexts, continuations), min_size=1, max_size=30)
costs = st.builds(Costs, token=st.sampled_from([1.0, 1e3, 1e6]), pair=st.just(1.0), longest=st.integers(1, 64))


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return tiny("llama")


def ordered(queries):
    return sorted(range(len(queries)), key=lambda index: queries[index].key)


@settings(max_examples=40, deadline=None)
@given(asked=requests, block=st.integers(0, 4), mode=st.sampled_from(["packed", "packed", "padded", "whole"]))
def test_random_requests_are_answered_as_the_plain_model_answers_them_one_by_one(model, asked, block, mode):
    queries = make_queries(asked, LONGEST)
    sweeper = Sweeper(model, queries, mode=mode, tokens=64)

    assert sweeper.mode == mode
    assert same(swept(sweeper, queries, block), plainly(model, queries))


@given(asked=requests)
def test_requests_are_cut_from_the_left_as_lm_eval_cuts_them(asked):
    for made, (_, context, continuation) in zip(make_queries(asked, LONGEST), asked, strict=True):
        assert made.tokens.tolist() == (context + continuation)[-(LONGEST + 1) :][:-1]
        assert made.targets.tolist() == continuation


@settings(deadline=None)
@given(asked=requests, costs=st.none() | costs)
def test_trees_hold_every_query_once_and_each_node_sees_its_own_path(asked, costs):
    queries = make_queries(asked, LONGEST)
    answered = []
    for tree in grow(queries, ordered(queries), costs):
        assert tree.chain or costs is not None
        for index, nodes in tree.query_nodes:
            node = nodes[-1]
            path = [j for j in range(tree.size) if j <= node < tree.ends[j]]
            assert tree.tokens[path].tolist() == queries[index].tokens.tolist()
            assert tree.depths[path].tolist() == list(range(len(path)))
            assert nodes.tolist() == path[-len(queries[index].targets) :]
            answered.append(index)
    assert sorted(answered) == list(range(len(queries)))


@settings(deadline=None)
@given(
    asked=requests,
    costs=costs,
    style=st.sampled_from(["packed", "padded"]),
    tokens=st.integers(1, 200),
    scores=st.none() | st.integers(1, 4000),
)
def test_batches_ask_every_query_once_and_keep_to_their_budget(asked, costs, style, tokens, scores):
    queries = make_queries(asked, LONGEST)
    layout = BatchLayout(style, tokens, min(32, tokens), scores, costs)
    batches = make_batches(queries, ordered(queries), layout, CPU)
    most = max(tree.size for tree in grow(queries, ordered(queries), costs if style == "packed" else None))

    owners = torch.cat([batch.owners for batch in batches]).bincount(minlength=len(queries))
    assert owners.tolist() == [len(one.targets) for one in queries]
    for batch in batches:
        rows, length = batch.ids.shape
        assert rows == 1 or rows * length <= tokens
        assert rows == 1 or scores is None or rows * length**2 <= scores
        assert length <= max(most, tokens)
        assert batch.tokens <= rows * length
        read = batch.ids.flatten()[batch.scored[batch.entries]]
        for index in batch.owners.unique().tolist():
            mine = read[batch.owners == index].tolist()
            assert mine == queries[index].tokens[-len(mine) :].tolist()


def test_rows_are_filled_and_no_longer_than_that_pays():
    random = np.random.default_rng(0)
    asked = [
        (None, random.integers(0, 50, n).tolist(), [1, 2]) for n in random.lognormal(4.2, 0.5, 600).astype(int) + 1
    ]
    queries = make_queries(asked, 1000)
    costs = Costs(token=2e6, pair=1500.0, longest=4096)
    batches = make_batches(queries, ordered(queries), BatchLayout("packed", 1024, 1, None, costs), CPU)
    trees = [tree.size for tree in grow(queries, ordered(queries), costs)]
    paid = sum(batch.ids.shape[0] * costs.row(batch.ids.shape[1]) for batch in batches)
    assert sum(batch.ids.numel() for batch in batches) < 1.02 * sum(trees)
    assert paid < 1.03 * sum(costs.row(size) for size in trees)  # each tree in a row of its own, without padding


def test_choices_share_their_context_and_documents_their_examples():
    examples = list(range(50))
    asked = [(None, [*examples, 60 + d, 70], [80 + c, 90]) for d in range(3) for c in range(4)]
    queries = make_queries(asked, 1000)

    (tree,) = grow(queries, ordered(queries), CHEAP)

    assert tree.size == 50 + 3 * (2 + 4)


def test_a_tree_does_not_grow_until_its_row_costs_more_than_sharing_saves():
    asked = [(None, [*range(90), 100 + d], list(range(30))) for d in range(20)]
    queries = make_queries(asked, 1000)

    sizes = [tree.size for tree in grow(queries, ordered(queries), Costs(token=1000.0, pair=4.0, longest=10_000))]

    assert 1 < len(sizes) < 20


def test_the_same_tokens_split_elsewhere_are_the_same_row_with_other_answers(model):
    tokens = [5, 6, 7, 8, 9, 10]
    queries = [query(tokens[:at], tokens[at:]) for at in (1, 3, 5)]
    sweeper = Sweeper(model, queries)

    assert sweeper.describe()["tokens_computed"] == 5
    assert same(swept(sweeper, queries), plainly(model, queries))
    assert len({round(answer, 3) for answer, _ in swept(sweeper, queries)}) == 3


def test_thousands_of_requests(model):
    random = np.random.default_rng(0)
    asked = []
    for _ in range(750):
        context = random.integers(0, VOCABULARY, random.integers(1, 12)).tolist()
        asked += [(None, context, random.integers(0, VOCABULARY, random.integers(1, 6)).tolist()) for _ in range(4)]
    queries = make_queries(asked, 64)
    sweeper = Sweeper(model, queries)

    answers = swept(sweeper, queries, 2)

    assert sweeper.describe()["tokens_computed"] < 0.75 * sweeper.describe()["tokens_asked"]
    assert len(answers) == 3000
    picked = list(range(0, 3000, 37))
    assert same([answers[i] for i in picked], plainly(model, [queries[i] for i in picked]))


@pytest.mark.parametrize(
    ("context", "continuation"),
    [([], [1]), ([1], []), ([1], list(range(LONGEST + 1)))],
    ids=["no context", "nothing asked", "too long"],
)
def test_what_lm_eval_refuses_is_refused(context, continuation):
    with pytest.raises(EvaluationError, match=r"request without|does not fit"):
        make_queries([(None, context, continuation)], LONGEST)


def test_a_continuation_as_long_as_the_window_is_not_refused(model):
    queries = make_queries([(None, [1, 2, 3], list(range(LONGEST)))], LONGEST)

    assert len(queries[0].tokens) == LONGEST
    assert same(swept(Sweeper(model, queries), queries), plainly(model, queries))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_checked_with_their_own_tolerance(dtype):
    model = tiny("llama", dtype)
    queries = [query([1, 2, 3, 4], [5, c]) for c in range(10)]
    sweeper = Sweeper(model, queries)

    assert sweeper.mode == "packed"
    absolute = 2.0 if dtype == torch.bfloat16 else 0.5  # as the engine's own check allows
    assert same(swept(sweeper, queries), plainly(model, queries), absolute=absolute, relative=0.05)
