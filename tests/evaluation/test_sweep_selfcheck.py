import numpy as np
import pytest
import torch

from lrbench.evaluation.sweep import sizes as memory
from lrbench.evaluation.sweep.answers import Tally
from lrbench.evaluation.sweep.forward_patching import Trace
from lrbench.evaluation.sweep.masks import Masks
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.prefix_trees import Costs, grow
from lrbench.evaluation.sweep.queries import Query
from lrbench.evaluation.sweep.selfcheck import SHORT, choose, cut_fork, length_limits
from lrbench.evaluation.sweep.sweeper import Sweeper
from lrbench.models.slot_search import find_slots
from lrbench.system.device import is_out_of_memory
from tests.support.tiny_models import VOCABULARY, plainly, query, same, some_queries, swept, tiny

QUERIES = some_queries(1)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    return tiny("llama")


def falls_back(model, *reasons, queries=QUERIES):
    """The sweeper, after checking that it answers as the plain model does and gave these reasons."""
    said = []
    sweeper = Sweeper(model, queries, notify=said.append)
    told = [fallback["reason"] for fallback in sweeper.describe()["fallbacks"]]
    assert len(told) == len(said) == len(reasons)
    for reason, expected, line in zip(told, reasons, said, strict=True):
        assert expected in reason
        assert reason in line
    if sweeper.mode != "none":
        assert same(swept(sweeper, queries, 2), plainly(model, queries))
    return sweeper


@pytest.mark.parametrize("dropped", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_masks_or_positions_gets_plain_rows(model, dropped):
    forward = model.forward
    model.forward = lambda *args, **options: forward(*args, **{**options, dropped: None})

    assert falls_back(model, "differ by").mode == "padded"


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("of_rows", ["attention_mask", "position_ids"])
def test_a_model_that_takes_the_first_row_for_all_gets_plain_rows(model, of_rows, seed):
    """As one does that makes a table of positions once for a batch. All requests may begin with one token."""
    queries = (
        QUERIES if seed is None else [Query(np.array([1, *one.tokens]), one.targets) for one in some_queries(seed)]
    )
    forward = model.forward

    def first_for_all(*args, **options):
        given = options.get(of_rows)
        return forward(*args, **{**options, of_rows: given if given is None else given[:1].expand_as(given)})

    model.forward = first_for_all

    assert falls_back(model, "differ by", queries=queries).mode == "padded"


@pytest.mark.parametrize("family", ["mistral", "qwen2_sliding", "gemma2"])
def test_a_sliding_window_that_is_not_in_the_mask_is_noticed(family, monkeypatch):
    monkeypatch.setattr(Masks, "_near", lambda self, depths: depths[:, :, None] >= 0)

    assert falls_back(tiny(family), "differ by").mode == "padded"


def long_queries(count=60, length=150):
    """Documents of many tokens, each with two choices."""
    random = np.random.default_rng(5)
    contexts = [random.integers(1, VOCABULARY, length).tolist() for _ in range(count)]
    return [query(context, [token, 5, 7]) for context in contexts for token in (3, 4)]


def test_a_long_sliding_window_that_is_not_in_the_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(Masks, "_near", lambda self, depths: depths[:, :, None] >= 0)

    assert falls_back(tiny("mistral", sliding_window=100), "differ by", queries=long_queries(8)).mode == "padded"


def test_rows_that_are_padded_without_a_mask_are_checked_too(model):
    """The first position of a row sees the length of the longest row, if the model makes its own mask."""
    forward = model.forward

    def sees_padding(input_ids, *args, attention_mask=None, **options):
        rows = input_ids.shape[0]
        if attention_mask is None and rows > 1:
            input_ids = input_ids.clone()
            input_ids[:, 0] = input_ids.shape[1]
        return forward(input_ids, *args, attention_mask=attention_mask, **options)

    model.forward = sees_padding
    queries = [query([0], range(1, 60)), *long_queries(3, length=300)]

    assert falls_back(model, "differ by", "differ by", "differ by", queries=queries).mode == "none"


def test_the_check_computes_less_than_a_tenth_of_a_pass(model):
    queries = long_queries(250)
    positions = []
    for block in find_slots(model).blocks:
        block.mlp.register_forward_pre_hook(lambda _, args: positions.append(args[0].shape[:-1].numel()))
    sweeper = Sweeper(model, queries)
    check, positions[:] = sum(positions), []

    swept(sweeper, queries)

    assert 0 < 10 * check < sum(positions)


def test_queries_are_cut_to_few_tokens_and_stay_beyond_a_limit_that_they_exceed():
    queries = long_queries(length=150)
    order = sorted(range(len(queries)), key=lambda index: queries[index].key)
    trees = list(grow(queries, order, Costs(1.0, 0.0, 1000)))

    cut, beyond = choose(queries, trees, {200}), choose(queries, trees, {100, 30, 200})

    assert max(len(one.tokens) for one in cut) == SHORT
    assert sorted({len(one.tokens) for one in beyond}) == [SHORT, 100 + SHORT]
    for one in (*cut, *beyond):
        tokens = [*one.tokens.tolist(), int(one.targets[-1])]
        assert tokens[-len(one.targets) :] == one.targets.tolist()
        assert any(str(tokens)[1:-1] in str([*q.tokens.tolist(), *q.targets[-1:].tolist()])[1:-1] for q in queries)


def test_a_cut_fork_has_a_common_prefix_and_differs_after_it():
    common, branch = list(range(1, 90)), list(range(1, 80))
    for first, second in (
        (query(common, [3, *branch]), query(common, [4, 5])),
        (query([1], [2, *branch]), query([1], [3, *branch])),
        (query(common, [3, 4]), query(common, [5, 6])),
    ):
        one, other = cut_fork(first, second, ())
        both = min(len(one.tokens), len(other.tokens))
        equal = one.tokens[:both] == other.tokens[:both]
        assert equal[0]
        assert not equal.all()
        assert max(len(one.tokens), len(other.tokens)) <= SHORT


@pytest.mark.parametrize(
    ("family", "limits"),
    [("llama", {512}), ("mistral", {8, 512}), ("mamba2", {256}), ("qwen2_sliding", {8, 2, 512})],
)
def test_the_lengths_that_matter_are_in_the_configuration(family, limits):
    assert length_limits(tiny(family).config) == limits


def test_a_model_that_refuses_masks_gets_plain_rows(model):
    forward = model.forward

    def refuses(*args, attention_mask=None, **options):
        if attention_mask is not None:
            raise ValueError("no masks\nhere")
        return forward(*args, **options)

    model.forward = refuses

    assert falls_back(model, "ValueError: no masks here").mode == "padded"


def test_blocks_that_pass_each_other_notes_are_never_left_out(model):
    blocks = find_slots(model).blocks
    first, third = blocks[0].forward, blocks[2].forward
    notes = {}

    def writes(*args, **options):
        notes["mean"] = first(*args, **options)
        return notes["mean"]

    blocks[0].forward = writes
    blocks[2].forward = lambda hidden, *args, **options: third(
        hidden + (notes["mean"] if notes["mean"].shape == hidden.shape else 0), *args, **options
    )

    assert falls_back(model, "differ by", "differ by").mode == "whole"
    assert blocks[0].__dict__["forward"] is writes


def test_a_model_whose_rows_meet_is_left_to_lm_eval(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden - hidden.mean(1, keepdim=True))

    assert falls_back(model, "differ by", "differ by", "differ by").mode == "none"


def test_a_model_that_fails_on_a_plain_sequence_is_left_to_lm_eval(model):
    def fails(*args, **options):
        raise RuntimeError("no")

    model.forward = fails

    assert falls_back(model, "the plain model fails: RuntimeError: no").mode == "none"


def test_weights_that_are_not_finite_do_not_pass_the_check(model):
    model.model.norm.weight.data[0] = float("nan")

    assert Sweeper(model, QUERIES).mode == "none"


def test_what_an_instance_has_as_its_forward_is_put_back(model):
    blocks = find_slots(model).blocks
    kept = blocks[0].forward
    blocks[0].forward = kept  # as accelerate does
    sweeper = Sweeper(model, QUERIES)

    swept(sweeper, QUERIES, 3)

    assert blocks[0].__dict__["forward"] is kept
    assert all("forward" not in block.__dict__ for block in blocks[1:])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_in_parts_the_answers_are_the_same_to_the_last_bit(family):
    model = tiny(family)
    together, apart = (Sweeper(model, QUERIES, tokens=64, frontier_bytes=size) for size in (None, 64 * 32 * 4 * 2))

    assert len(together.parts) == 1
    assert len(apart.parts) > 2
    assert swept(together, QUERIES, 2) == swept(apart, QUERIES, 2)
    assert apart.describe()["parts"] == len(apart.parts)


def test_the_frontier_goes_up_once_and_starts_anew_when_it_must_go_down(model):
    sweeper = Sweeper(model, QUERIES)
    computed = []
    for index, block in enumerate(find_slots(model).blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: computed.append(index))
    (part,) = sweeper.parts

    def moved(block):
        computed.clear()
        sweeper.advance(part, block)
        return sorted(set(computed))

    assert moved(1) == [0]
    assert moved(1) == []
    assert moved(3) == [1, 2]
    assert moved(0) == []
    assert moved(3) == []
    assert moved(2) == [0, 1]
    assert moved(4) == [2, 3]


def test_logits_never_exceed_their_share_of_the_memory(model, monkeypatch):
    monkeypatch.setitem(memory.LOGITS, "cpu", 5 * 97)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    sweeper = Sweeper(model, QUERIES)
    seen.clear()

    answers = swept(sweeper, QUERIES)

    assert max(seen) == 5
    assert same(answers, plainly(model, QUERIES))


def test_where_attention_runs_eager_rows_are_short_and_few(monkeypatch):
    model = tiny("gemma2")
    heads = model.config.num_attention_heads
    assert model.config._attn_implementation == "eager"
    queries = [query([n, *range(20, 32)], [n + 1, n + 2]) for n in range(24)]
    batches = {}
    for scores in (memory.SCORES["cpu"], 5 * 20**2 * heads):
        monkeypatch.setitem(memory.SCORES, "cpu", scores)
        sweeper = Sweeper(model, queries)
        batches[scores] = [batch.ids.shape for batch in sweeper.parts[0].batches]
        assert all(rows * length**2 * heads <= scores for rows, length in batches[scores])
        assert same(swept(sweeper, queries, 2), plainly(model, queries))
    free, bound = batches.values()
    assert len(free) == 1 < len(bound)


def test_a_model_that_tells_no_heads_and_recurs_is_scored_in_plain_rows():
    model = tiny("mamba2")
    assert not hasattr(model.config, "num_attention_heads")
    sweeper = falls_back(model, "log-likelihoods differ")
    assert sweeper.mode == "padded"
    assert same(swept(sweeper, QUERIES, 2), plainly(model, QUERIES))


def test_halved_batches_give_the_same_answers(model):
    sweeper = Sweeper(model, QUERIES, tokens=256)
    before = swept(sweeper, QUERIES, 2)

    assert sweeper.halve()
    assert same(swept(sweeper, QUERIES, 2), before)
    assert sweeper.describe()["batch_tokens"] == 128
    assert sweeper.halve()
    assert not sweeper.halve()
    assert len(sweeper.describe()["out_of_memory"]) == 2


def test_what_was_tallied_can_be_taken_back(model):
    sweeper = Sweeper(model, QUERIES)
    (part,) = sweeper.parts
    tally = Tally(len(QUERIES))

    for _ in range(2):
        tally.forget(part.queries)
        sweeper.score(part, 0, sweeper.advance(part, 0), tally)

    assert same(tally.answers(), plainly(model, QUERIES))


def test_a_block_that_peeks_at_its_weights_is_computed_whole_in_each_cell(model):
    block = find_slots(model).blocks[3]
    forward = block.input_layernorm.forward
    block.input_layernorm.forward = lambda x: forward(x) * (1 + abs(block.mlp.down_proj.weight.data.numpy()).mean())

    sweeper = falls_back(model, "what was remembered before model.layers.3.mlp.down_proj.weight")

    assert sweeper.mode == "packed"
    assert not sweeper.describe()["remembers_before_the_edit"]
    assert sweeper.describe()["last_block_only_where_asked"]


def test_a_block_that_cannot_be_followed_is_computed_whole_in_each_cell(model, monkeypatch):
    def refuses(*_):
        raise RuntimeError("no dispatch")

    monkeypatch.setattr(Trace, "__torch_dispatch__", refuses)

    assert not falls_back(model, "no dispatch").replays


def test_a_last_block_that_mixes_positions_late_computes_them_all(model):
    mlp = find_slots(model).blocks[-1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])

    sweeper = falls_back(model, "differ by", "differ by")

    assert sweeper.mode == "padded"
    assert not sweeper.describe()["last_block_only_where_asked"]
    assert sweeper.replays


def test_memory_that_runs_out_in_the_self_check_halves_the_batches_there(model, monkeypatch):
    head_inputs, failing = PartialForward.head_inputs, [True, True]

    def runs_out(self, batch, *args):
        if failing:
            failing.pop()
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return head_inputs(self, batch, *args)

    monkeypatch.setattr(PartialForward, "head_inputs", runs_out)
    said = []
    sweeper = Sweeper(model, QUERIES, tokens=512, notify=said.append)

    assert sweeper.mode == "packed"
    assert sweeper.describe()["batch_tokens"] == 128
    assert sweeper.describe()["fallbacks"] == []
    assert len(said) == len(sweeper.describe()["out_of_memory"]) == 2


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**46)

    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))
