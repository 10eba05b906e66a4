"""Factors: what they say of themselves is true."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from lrbench.reducers.base import Reducer
from lrbench.reducers.factors import (
    CUR,
    BlockDiagonalProduct,
    ClusteredLowRank,
    ColumnSubset,
    Dense,
    Factors,
    Interpolative,
    LowRank,
)
from lrbench.reducers.output_check import ReducerError, validate_factors


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def examples():
    """One of each type, of shape (5, 7)."""
    return [
        LowRank(normal(5, 3), normal(3, 7)),
        Interpolative(normal(2, 7), torch.tensor([4, 1]), normal(3, 2), side="rows"),
        Interpolative(normal(5, 3), torch.tensor([6, 0, 2]), normal(3, 4), side="columns"),
        CUR(normal(5, 2), normal(2, 3), normal(3, 7), columns=torch.tensor([6, 2]), rows=torch.tensor([0, 4, 1])),
        ColumnSubset(normal(5, 3), torch.tensor([5, 0, 2]), in_features=7),
        Dense(normal(5, 7)),
        BlockDiagonalProduct(normal(2, 3, 3, 2), normal(3, 2, 2, 3), out_features=5, in_features=7),
        ClusteredLowRank(normal(8), normal(3, 7), torch.tensor([3, 0, 4, 2, 1]), sizes=(3, 2), ranks=(2, 1)),
    ]


@pytest.fixture(params=examples(), ids=lambda f: f"{type(f).__name__}-{getattr(f, 'side', '')}".rstrip("-"))
def factors(request):
    return request.param


def test_factors_apply_to_tokens_as_their_dense_matrix_does(factors):
    x = normal(2, 3, 7)
    torch.testing.assert_close(factors.apply(x), x @ factors.dense().T)
    torch.testing.assert_close(factors.apply(x[0, 0]), factors.dense() @ x[0, 0])


def test_the_dense_matrix_has_the_shape_the_factors_state(factors):
    assert factors.check() is factors
    assert factors.shape == (5, 7) == tuple(factors.dense().shape)
    assert torch.linalg.matrix_rank(factors.dense()) <= factors.rank


def test_the_dense_matrix_of_the_base_class_is_that_of_each_type(factors):
    torch.testing.assert_close(Factors.dense(factors), factors.dense())


@pytest.mark.parametrize(
    ("index", "numbers", "positions"),
    [
        (0, 3 * 12, 0),
        (1, 2 * (12 - 2), 2),
        (2, 3 * (12 - 3), 3),
        (3, 10 + 6 + 21, 5),
        (4, 15, 3),
        (5, 35, 0),
        (6, 72, 0),
        (7, 29, 5),
    ],
)
def test_numbers_are_counted_without_positions_and_bytes_with_them(index, numbers, positions):
    factors = examples()[index]
    assert factors.stored_numbers == factors.multiply_adds == numbers
    assert factors.stored_bytes == 8 * numbers + 4 * positions
    assert factors.to(torch.float16).stored_bytes == 2 * numbers + 4 * positions


def test_casting_leaves_positions_integer(factors):
    cast = factors.to(torch.bfloat16, "cpu")
    assert cast.dtype == torch.bfloat16
    for name, tensor in factors.tensors().items():
        if not tensor.is_floating_point():
            assert torch.equal(cast.tensors()[name], tensor)
            assert cast.tensors()[name].dtype == tensor.dtype


def test_what_is_saved_is_loaded_bit_for_bit_whatever_its_type(factors, tmp_path):
    factors.save(tmp_path / "w.safetensors")
    loaded = Factors.load(tmp_path / "w.safetensors")
    assert type(loaded) is type(factors)
    assert torch.equal(loaded.dense(), factors.dense())
    assert {f.name for f in dataclasses.fields(loaded)} == {f.name for f in dataclasses.fields(factors)}


def test_positions_take_four_bytes_in_a_file(tmp_path):
    from safetensors import safe_open

    examples()[1].save(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.get_tensor("indices").dtype == torch.int32


def test_factors_that_share_memory_or_are_strided_can_be_saved(tmp_path):
    W = normal(6, 6)
    LowRank(W[:, :2], W[:2]).save(tmp_path / "w.safetensors")
    torch.testing.assert_close(Factors.load(tmp_path / "w.safetensors").dense(), W[:, :2] @ W[:2])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "holds no lrbench factors"),
        ({"type": "Tensor"}, "unknown factors 'Tensor'"),
        ({"type": "LowRank"}, "unexpected keyword argument"),
        ({"type": "Dense", "colour": 1}, "unexpected keyword argument"),
    ],
)
def test_a_file_that_holds_no_factors_is_refused_in_one_line(tmp_path, header, message):
    path = tmp_path / "w.safetensors"
    save_file({"matrix": torch.eye(2)}, path, metadata=None if header is None else {"lrbench": json.dumps(header)})
    with pytest.raises(ValueError, match=message) as caught:
        Factors.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Factors.load(tmp_path / "w.safetensors")


def test_a_module_applies_the_factors_and_adds_the_bias(factors):
    x, bias = normal(4, 7), normal(5)
    torch.testing.assert_close(factors.module()(x), factors.apply(x))
    torch.testing.assert_close(factors.module(bias)(x), factors.apply(x) + bias)


def test_a_module_holds_numbers_as_parameters_and_positions_as_buffers(factors):
    module = factors.module(normal(5))
    assert sum(p.numel() for p in module.parameters()) == factors.stored_numbers + 5
    assert all(not b.is_floating_point() for b in module.buffers())
    assert {*module.state_dict()} == {*factors.tensors(), "bias"}


def test_a_module_follows_its_own_cast_copy_training_and_state(factors):
    module, x = factors.module(), normal(4, 7)
    half = copy.deepcopy(module).to(torch.float32)
    torch.testing.assert_close(half(x.float()), factors.apply(x).float(), rtol=1e-4, atol=1e-5)
    assert module(x).dtype == torch.float64
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    assert not torch.allclose(module(x), factors.apply(x))
    fresh = factors.module()
    fresh.load_state_dict(
        {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in fresh.state_dict().items()}
    )
    assert not fresh(x).any()


def test_positions_loaded_into_a_module_are_used():
    first = ColumnSubset(torch.eye(2), torch.tensor([0, 1]), in_features=4)
    module = first.module()
    module.load_state_dict({"columns": torch.eye(2), "indices": torch.tensor([3, 2])})
    assert module(torch.arange(4.0)).tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LowRank(normal(5, 3), normal(2, 7)), "inner sizes differ"),
        (LowRank(normal(5, 3), normal(3, 7).float()), "LowRank.right is torch.float32"),
        (LowRank(normal(5, 3), normal(3)), "LowRank.right must have 2 dimensions, not 1"),
        (LowRank(normal(5, 3), None), "LowRank.right must be a torch.Tensor, not a NoneType"),
        (LowRank(torch.ones(5, 3, dtype=torch.int64), normal(3, 7)), "LowRank.left must be of a floating dtype"),
        (Interpolative(normal(2, 7), torch.tensor([1, 1]), normal(3, 2), "rows"), "holds a position twice"),
        (Interpolative(normal(2, 7), torch.tensor([1, 5]), normal(3, 2), "rows"), "5, out of range 0..4"),
        (Interpolative(normal(2, 7), torch.tensor([-1, 2]), normal(3, 2), "rows"), "-1, out of range"),
        (Interpolative(normal(2, 7), torch.tensor([1, 2]), normal(3, 3), "rows"), "a skeleton of 2 rows"),
        (Interpolative(normal(2, 7), torch.tensor([1, 2]), normal(3, 2), "both"), "side is 'both'"),
        (Interpolative(normal(2, 7), torch.tensor([1.0, 2]), normal(3, 2), "rows"), "positions of an integer dtype"),
        (ColumnSubset(normal(5, 3), torch.tensor([0, 1]), in_features=7), "2 entries for 3"),
        (ColumnSubset(normal(5, 2), torch.tensor([0, 7]), in_features=7), "7, out of range 0..6"),
        (
            BlockDiagonalProduct(normal(2, 3, 3, 2), normal(2, 3, 2, 3), out_features=5, in_features=7),
            r"left must be \(J, L, K, r\) and right \(K, J, r, I\)",
        ),
        (BlockDiagonalProduct(normal(2, 3, 6), normal(3, 2, 2, 3), 5, 7), "left must have 4 dimensions, not 3"),
        (BlockDiagonalProduct(normal(2, 3, 3, 2), normal(3, 2, 2, 3), 7, 7), "does not fit 2 groups of 3"),
        (BlockDiagonalProduct(normal(2, 3, 3, 2), normal(3, 2, 2, 3), 5, 6), "does not fit 3 groups of 3"),
        (ClusteredLowRank(normal(8), normal(3, 7), torch.arange(5), (3, 2), (2, 2)), "ranks add up to 4"),
        (ClusteredLowRank(normal(7), normal(3, 7), torch.arange(5), (3, 2), (2, 1)), "imply 8 entries in left"),
        (ClusteredLowRank(normal(8), normal(3, 7), torch.arange(5), (3, 2), (3,)), "2 sizes, but 1 ranks"),
        (ClusteredLowRank(normal(8), normal(3, 7), torch.arange(5), (3.0, 2), (2, 1)), "sizes must be whole numbers"),
        (
            ClusteredLowRank(normal(8), normal(3, 7), torch.tensor([0, 1, 2, 3, 3]), (3, 2), (2, 1)),
            "rows holds a position twice",
        ),
        (CUR(normal(5, 2), normal(3, 2), normal(2, 7), torch.arange(2), torch.arange(2)), "inner sizes differ"),
        (CUR(normal(5, 2), normal(2, 2), normal(2, 7), torch.tensor([0, 9]), torch.arange(2)), "CUR.columns holds 9"),
    ],
)
def test_inconsistent_factors_are_refused_with_the_field_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong.check()


def test_rank_zero_and_full_rank_interpolations_are_consistent():
    full = Interpolative(normal(3, 4), torch.tensor([2, 0, 1]), normal(0, 3), side="rows")
    assert torch.equal(full.check().dense()[torch.tensor([2, 0, 1])], full.skeleton)
    torch.testing.assert_close(full.apply(torch.eye(4).double()), full.dense().T)


def test_a_monarch_matrix_is_two_block_diagonal_matrices_with_a_permutation_between_them():
    J, L, K, I, r = 2, 3, 4, 2, 2  # noqa: E741
    left, right = normal(J, L, K, r), normal(K, J, r, I)
    first = torch.block_diag(*right.reshape(K, J * r, I))  # (k j s) x (k i)
    second = torch.block_diag(*left.reshape(J, L, K * r))  # (j l) x (j k s)
    between = torch.arange(K * J * r).reshape(K, J, r).transpose(0, 1).flatten()  # (j k s) from (k j s)
    after = torch.arange(J * L).reshape(J, L).T.flatten()  # (l j) from (j l)
    factors = BlockDiagonalProduct(left, right, out_features=J * L, in_features=K * I).check()
    torch.testing.assert_close(factors.dense(), (second @ first[between])[after])
    assert (factors.blocks, factors.block_rank) == ((J, K), r)


@pytest.mark.parametrize(
    ("J", "L", "K", "I", "r", "rank"), [(2, 8, 2, 8, 1, 4), (1, 9, 1, 8, 3, 3), (2, 4, 4, 3, 3, 8), (4, 4, 2, 3, 2, 6)]
)
def test_the_rank_of_a_monarch_matrix_is_bounded_by_its_shapes_and_attains_the_bound(J, L, K, I, r, rank):  # noqa: E741
    factors = BlockDiagonalProduct(normal(J, L, K, r), normal(K, J, r, I), J * L, K * I)
    assert factors.rank == rank == int(torch.linalg.matrix_rank(factors.dense()))


def test_a_cluster_may_be_of_rank_zero_or_empty():
    factors = ClusteredLowRank(normal(4), normal(2, 7), torch.tensor([2, 0, 1]), sizes=(2, 1, 0), ranks=(2, 0, 0))
    assert not factors.check().dense()[1].any()
    torch.testing.assert_close(factors.apply(normal(3, 7)), normal(3, 7) @ factors.dense().T)
    nothing = ClusteredLowRank(normal(0), normal(0, 7), torch.arange(5), sizes=[5], ranks=[0]).check()
    assert (nothing.rank, nothing.stored_numbers, nothing.shape) == (0, 0, (5, 7))
    assert torch.equal(nothing.apply(normal(2, 7)), torch.zeros(2, 5).double())


class OfBlocks(Reducer):
    name = "of-blocks"
    rank_of = "each block"

    def stored_numbers(self, shape, rank):
        return 36 * rank


def test_where_the_rank_is_not_of_the_weight_factors_are_held_against_their_size_alone():
    factors = examples()[6]
    assert factors.rank == 5
    assert validate_factors(factors, (5, 7), 2, OfBlocks()) is factors
    assert validate_factors(factors, (5, 7), 3, OfBlocks()) is factors
    with pytest.raises(ReducerError, match="stores 72 parameters at rank 1, but its stored_numbers says 36"):
        validate_factors(factors, (5, 7), 1, OfBlocks())


class Halves(Reducer):
    name = "halves"

    def stored_numbers(self, shape, rank):
        return rank * sum(shape)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returned None"),
        (normal(5, 7), "returned a torch.Tensor; return lrbench factors"),
        (LowRank(normal(7, 3), normal(3, 5)), r"shape \(7, 5\) for a weight of shape \(5, 7\)"),
        (LowRank(normal(5, 3), normal(2, 7)), "inconsistent factors: LowRank: left is"),
        (LowRank(normal(5, 4), normal(4, 7)), "rank 4 where rank 3 was requested"),
        (LowRank(normal(5, 3) / 0, normal(3, 7)), "NaN or Inf in left at rank 3"),
        (Dense(normal(5, 7)), None),
        (ColumnSubset(normal(5, 3), torch.arange(3), in_features=7), "stores 15 parameters at rank 3, but .* says 36"),
    ],
)
def test_the_harness_says_what_is_wrong_with_an_output_and_names_the_reducer(output, message):
    if message is None:
        assert validate_factors(output, (5, 7), 3, Halves()) is output
        return
    with pytest.raises(ReducerError, match=message) as caught:
        validate_factors(output, (5, 7), 3, Halves())
    assert "'halves'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_factors_of_a_lower_rank_may_store_less_than_was_stated():
    assert validate_factors(LowRank(normal(5, 2), normal(2, 7)), (5, 7), 3, Halves()).rank == 2
