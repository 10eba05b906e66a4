"""One matrix from a file: reading it, and reducing it as in a run."""

import csv
import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lrbench.cli import main
from lrbench.errors import InputError, PluginError
from lrbench.models.load import bundled, load
from lrbench.reducers.ranks import RankRequest
from lrbench.reducers.registry import Registry
from lrbench.reduction.cell_reducer import CellReducer
from lrbench.reduction.matrix_file import read_matrix
from lrbench.reduction.plan import Cell, Method
from lrbench.reduction.single_matrix import method, reduce_matrix, slot_of
from lrbench.suite.load import ModelSpec
from tests.support.suites import MISBEHAVING

W = np.random.default_rng(0).standard_normal((24, 40))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", W)


def rows_of(capsys, *arguments, code=0):
    assert main(["matrix", *arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)["rows"]


def error_line(capsys, *arguments):
    assert main(["matrix", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_as_it_was_written(dtype, order):
    np.save("a.npy", np.array(W, dtype=dtype, order=order))
    matrix = read_matrix_of("a.npy")
    assert matrix.name == "a.npy"
    assert np.array_equal(matrix.values.numpy(), W.astype(dtype))


def read_matrix_of(name, key=None):
    return read_matrix(Path(name), key)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_is_read_as_it_was_written(dtype):
    tensor = torch.from_numpy(W).to(dtype)
    save_file({"layer.weight": tensor}, "a.safetensors")
    matrix = read_matrix_of("a.safetensors")
    assert matrix.name == "layer.weight"
    assert matrix.values.dtype == dtype
    assert torch.equal(matrix.values, tensor)


def test_one_array_needs_no_key_and_several_do():
    np.savez("one.npz", scores=W)
    assert read_matrix_of("one.npz").name == "scores"
    np.savez("two.npz", first=W, second=2 * W)
    assert np.array_equal(read_matrix_of("two.npz", "second").values.numpy(), 2 * W)
    with pytest.raises(InputError, match=r"two.npz: holds 2 arrays; choose one with --key \(first, second\)"):
        read_matrix_of("two.npz")
    with pytest.raises(InputError, match="no array 'secnd'; did you mean 'second'"):
        read_matrix_of("two.npz", "secnd")
    save_file({f"w{i}": torch.zeros(2, 2) for i in range(20)}, "many.safetensors")
    with pytest.raises(InputError, match=r"holds 20 arrays; .*and 12 more"):
        read_matrix_of("many.safetensors")


class Trap:
    def __reduce__(self):
        return (open, ("sprung", "w"))


def write_bad(kind):
    """A file that cannot be used, by name."""
    match kind:
        case "objects.npy":
            np.save(kind, np.array([[Trap()]], dtype=object), allow_pickle=True)
        case "objects.npz":
            np.savez(kind, a=np.array([[Trap()]], dtype=object))
        case "pickle.npy" | "pickle.npz" | "pickle.safetensors" | "pickle.pt":
            with open(kind, "wb") as file:
                pickle.dump(Trap(), file)
        case "integers.npy":
            np.save(kind, np.eye(3, dtype=np.int64))
        case "complex.npy":
            np.save(kind, np.eye(3) * 1j)
        case "booleans.npy":
            np.save(kind, np.eye(3) > 0)
        case "records.npy":
            np.save(kind, np.zeros((2, 2), dtype=[("a", float), ("b", float)]))
        case "wide.npy":
            np.save(kind, np.zeros((2, 2), dtype=np.longdouble))
        case "vector.npy":
            np.save(kind, np.ones(3))
        case "stack.npz":
            np.savez(kind, a=np.ones((2, 3, 4)))
        case "empty.npy":
            np.save(kind, np.ones((0, 4)))
        case "nan.npy" | "inf.npy":
            bad = W.copy()
            bad[3, 4] = math.nan if kind == "nan.npy" else -math.inf
            np.save(kind, bad)
        case "integers.safetensors":
            save_file({"a": torch.eye(3, dtype=torch.int8)}, kind)
        case "none.safetensors":
            save_file({}, kind)
        case "torn.npy" | "torn.npz" | "torn.safetensors":
            np.save("torn.npy", W)
            np.savez("torn.npz", a=W)
            save_file({"a": torch.from_numpy(W)}, "torn.safetensors")
            data = Path(kind).read_bytes()
            Path(kind).write_bytes(data[: len(data) // 2])
        case "folder.npy":
            Path(kind).mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("objects.npy", "holds pickled objects, which are not read"),
        ("objects.npz", "holds pickled objects, which are not read"),
        ("pickle.npy", "is no .npy file"),
        ("pickle.npz", "is no .npz file"),
        ("pickle.safetensors", "cannot be read as .safetensors"),
        ("pickle.pt", "pickles (.pt, .pth, .bin, .pkl) are not read"),
        ("integers.npy", "holds int64; reducers take float64"),
        ("complex.npy", "holds complex128"),
        ("booleans.npy", "holds bool"),
        ("records.npy", "reducers take float64"),
        ("wide.npy", "reducers take float64"),
        ("vector.npy", "has shape (3,)"),
        ("stack.npz", "stack.npz[a]: has shape (2, 3, 4)"),
        ("empty.npy", "has shape (0, 4); it is empty"),
        ("nan.npy", "holds nan at [3, 4]"),
        ("inf.npy", "holds -inf at [3, 4]"),
        ("integers.safetensors", "integers.safetensors[a]: holds int8"),
        ("none.safetensors", "holds 0 arrays"),
        ("torn.npy", "cannot be read as .npy"),
        ("torn.npz", "cannot be read as .npz"),
        ("torn.safetensors", "cannot be read as .safetensors"),
        ("folder.npy", "is a folder"),
        ("missing.npy", "no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_nothing_is_unpickled(kind, message, capsys, tmp_path):
    write_bad(kind)
    line = error_line(capsys, kind)
    assert line.startswith(f"lrbench: {kind}")
    assert message in line
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w.npy", "--key", "a"], "--key is for .npz and .safetensors"),
        (["w.npy", "--reducer", "svdd"], "unknown reducer 'svdd'; did you mean 'svd'?"),
        (["w.npy", "--reducer", "rsvd:oversampl=3"], "did you mean 'oversample'?"),
        (["w.npy", "--reducer", "rsvd:oversample=x"], "oversample"),
        (["w.npy", "--reducer", "rsvd:oversample"], "write NAME:param=value,param=value"),
        (["w.npy", "--reducer", "rsvd:oversample=1,oversample=2"], "each parameter once"),
        (["w.npy", "--reducer", "svd", "svd"], "--reducer svd is given twice"),
        (["w.npy", "--plugin", "nowhere.py"], "nowhere.py"),
        (["w.npy", "--device", "cuda:77"], "cuda:77"),
        (["w.npy", "--output", "nowhere/table"], "nowhere is not a folder"),
        (["w.npy", "--output", "."], "is a folder"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert message in error_line(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--rank", text] for text in ("0", "-1", "1.5", "x", "99999999999999999999")),
        *(["--keep", text] for text in ("0", "1.1", "nan", "inf", "x")),
        *(["--error", text] for text in ("-0.1", "nan", "inf")),
        ["--rank", "2", "--keep", "0.5"], ["--seed", "-1"], ["--format", "latex"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_ends_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["matrix", "w.npy", *arguments])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_reducer_is_measured_and_the_svd_is_at_the_optimum(capsys):
    rows = rows_of(capsys, "w.npy", "--keep", "0.6", "0.3")
    calibrated = {name for name, reducer in Registry.load().reducers.items() if reducer.needs}
    assert {row["reducer"] for row in rows} == set(Registry.load().reducers)
    assert {row["reducer"] for row in rows if row["status"] == "skipped"} == calibrated
    sigma = np.linalg.svd(W, compute_uv=False)
    for row in rows:
        if row["status"] == "skipped":
            continue
        assert row["keep"] == row["stored_numbers"] / W.size <= row["requested"]["keep"]
        assert row["seconds"] > 0
        if Registry.load().reducers[row["reducer"]].rank_of != "weight":
            assert row["optimal_error"] is row["ratio"] is None
            continue
        assert row["optimal_error"] == pytest.approx(
            math.sqrt((sigma[row["rank"] :] ** 2).sum() / (sigma**2).sum()), abs=1e-9
        )
        assert row["relative_error"] >= row["optimal_error"] * (1 - 1e-6)
        if row["optimal_error"] > 1e-6:
            assert row["ratio"] == row["relative_error"] / row["optimal_error"]
    assert [row["ratio"] for row in rows if row["label"] == "svd"] == pytest.approx([1, 1])
    done = [row for row in rows if row["status"] == "ok"]
    assert [row["requested"]["keep"] for row in done] == sorted(
        (row["requested"]["keep"] for row in done), reverse=True
    )
    assert len({row["requested"]["keep"] for row in done}) == 2


@pytest.mark.parametrize(
    ("option", "value", "rank"), [("--rank", "5", 5), ("--fraction", "0.25", 6), ("--energy", "1", 24)]
)
def test_ranks_are_those_of_a_suite(option, value, rank, capsys):
    [row] = rows_of(capsys, "w.npy", option, value, "--reducer", "svd")
    assert row["rank"] == rank
    assert row["requested"] == {option[2:]: float(value)}


def test_an_error_bound_is_met_by_the_smallest_rank(capsys):
    [row] = rows_of(capsys, "w.npy", "--error", "0.5", "--reducer", "svd")
    [less] = rows_of(capsys, "w.npy", "--rank", str(row["rank"] - 1), "--reducer", "svd")
    assert row["relative_error"] <= 0.5 < less["relative_error"]


def test_a_weight_of_a_checkpoint_gives_the_numbers_of_a_run(capsys):
    """Random draws too: they depend on the weight's name, which is the key."""
    name = "model.layers.3.mlp.up_proj.weight"
    slot = next(s for s in load(ModelSpec(name="almanac"), "cpu").inventory.slots if s.name == name)
    registry = Registry.load()
    file = str(bundled()["almanac"] / "model.safetensors")
    for row in rows_of(capsys, file, "--key", name, "--keep", "0.4", "--reducer", "rsvd", "cr:sampling=random", "id"):
        reducer = registry.build(row["reducer"], row["params"])
        cell = Cell(Method(row["label"], reducer, row["params"], ""), "each", (slot,), RankRequest("keep", 0.4))
        [(_, [reduction])] = CellReducer(0).reduce_group([cell])
        assert row["rank"] == reduction.edit.rank
        assert row["relative_error"] == pytest.approx(reduction.edit.relative_error, rel=1e-12)


def test_the_error_is_that_after_rounding_to_the_files_dtype(capsys):
    np.save("half.npy", W.astype(np.float16))
    [exact] = rows_of(capsys, "w.npy", "--rank", "24", "--reducer", "svd")
    [rounded] = rows_of(capsys, "half.npy", "--rank", "24", "--reducer", "svd")
    assert exact["relative_error"] < 1e-12
    assert rounded["stored_as"] == "dense"
    assert rounded["stored_bytes"] == 2 * W.size
    [low] = rows_of(capsys, "half.npy", "--rank", "4", "--reducer", "svd")
    assert low["stored_bytes"] == 2 * low["stored_numbers"]


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (5, 5), (9, 4), (4, 9)])
def test_zeros_and_every_shape_are_reduced(shape, capsys):
    for name, matrix in (("zeros.npy", np.zeros(shape)), ("ones.npy", np.ones(shape))):
        np.save(name, matrix)
        rows = rows_of(capsys, name, "--rank", "1", "--reducer", "svd", "id")
        assert all(row["relative_error"] == pytest.approx(0, abs=1e-9) for row in rows)
        assert all(row["ratio"] is None for row in rows)


def test_the_seed_changes_random_draws_and_nothing_else(capsys):
    arguments = ["w.npy", "--rank", "6", "--reducer", "random-columns", "svd"]
    first, same, other = (rows_of(capsys, *arguments, "--seed", seed) for seed in ("0", "0", "9007199254740993"))

    def errors(rows):
        return {row["label"]: row["relative_error"] for row in rows}

    assert errors(first) == errors(same)
    assert errors(first)["svd"] == errors(other)["svd"]
    assert errors(first)["random-columns"] != errors(other)["random-columns"]


def test_a_reducer_that_fails_is_a_row_with_its_reason_and_exit_code_1(capsys, tmp_path):
    (tmp_path / "bad.py").write_text(MISBEHAVING)
    rows = rows_of(capsys, "w.npy", "--rank", "3", "--reducer", "raises", "svd", "--plugin", "bad.py", code=1)
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert "no luck at all" in rows[1]["reason"]
    assert rows[1]["relative_error"] is None
    rows = rows_of(capsys, "w.npy", "--rank", "3", "25", "--reducer", "svd", code=1)
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert "rank 25 is above 24" in rows[1]["reason"]


OF_BLOCKS = """
import lrbench
from lrbench import linalg

class Quarters(lrbench.Reducer):
    \"\"\"Four blocks.\"\"\"
    name = "quarters"
    rank_of = "each block"

    def reduce(self, weight, rank, context):
        m, n = weight.shape
        blocks = weight.reshape(m // 2, 2, 2, n // 2).permute(1, 2, 0, 3)
        U, V = linalg.block_truncations(blocks, rank)
        left, right = U.transpose(1, 2).contiguous(), V.transpose(0, 1).contiguous()
        return lrbench.BlockDiagonalProduct(left, right, out_features=m, in_features=n)

@lrbench.hookimpl
def lrbench_reducers():
    return [Quarters]
"""


@pytest.mark.parametrize("option", ["--energy", "--fraction"])
def test_a_method_that_has_no_such_rank_is_skipped_unless_it_is_named(option, capsys, tmp_path):
    (tmp_path / "blocks.py").write_text(OF_BLOCKS)
    rows = rows_of(capsys, "w.npy", option, "0.5", "0.9", "--plugin", "blocks.py")
    assert {row["status"] for row in rows if row["reducer"] == "svd"} == {"ok"}
    blocks = [row for row in rows if row["reducer"] == "quarters"]
    assert [row["status"] for row in blocks] == ["skipped"] * 2
    assert "the rank of quarters is that of each block; use `keep`, `error` or `rank`" in blocks[0]["reason"]
    named = ["w.npy", option, "0.5", "--plugin", "blocks.py", "--reducer", "quarters", "svd"]
    assert [row["status"] for row in rows_of(capsys, *named, code=1)] == ["ok", "failed"]


def test_the_optimum_of_a_rank_is_not_held_against_a_rank_of_blocks(capsys, tmp_path):
    """Blocks of rank 6 make a matrix of rank 24, of which the optimum is 0."""
    (tmp_path / "blocks.py").write_text(OF_BLOCKS)
    arguments = ["w.npy", "--rank", "6", "--plugin", "blocks.py", "--reducer", "quarters", "svd"]
    rows = {row["reducer"]: row for row in rows_of(capsys, *arguments)}
    assert rows["quarters"]["rank"] == 24
    assert rows["quarters"]["optimal_error"] is rows["quarters"]["ratio"] is None
    assert rows["svd"]["ratio"] == pytest.approx(1)
    assert main(["matrix", *arguments, "--format", "csv"]) == 0
    line = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (line["reducer"], line["optimal_error"], line["ratio"]) == ("quarters", "", "")
    assert main(["matrix", *arguments, "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "| quarters | rank 6 | 24 |" in text
    assert "| — | — |" in text
    assert "— for methods whose rank is that of blocks" in text


@pytest.mark.parametrize("factor", [2.0**-664, 2.0**664, 2.0**-1030])
def test_errors_do_not_depend_on_the_size_of_the_numbers(factor, capsys):
    """Squares of 2^664, about 1e200, are no numbers of float64; times 2^-1030 all are subnormal, with fewer digits."""
    np.savez("scaled.npz", w=W * factor)
    np.savez("same.npz", w=W * factor / factor)
    names = ["svd", "rsvd", "id", "cr", "cur", "monarch", "bottom"]
    scaled, same = (rows_of(capsys, f"{name}.npz", "--keep", "0.5", "--reducer", *names) for name in ("scaled", "same"))
    for row, other in zip(scaled, same, strict=True):
        assert (row["reducer"], row["status"]) == (other["reducer"], "ok")
        assert row["relative_error"] == pytest.approx(other["relative_error"], rel=1e-9)
        assert row["optimal_error"] is other["optimal_error"] is None or row["optimal_error"] == pytest.approx(
            other["optimal_error"], rel=1e-9
        )
    assert main(["matrix", "scaled.npz", "--rank", "3", "--reducer", "svd", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["matrix"]["norm"] == pytest.approx(np.linalg.norm(W) * factor, rel=1e-6)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 2.0**-120), ("float32", 2.0**100), ("float64", 2.0**300)])
def test_a_sketch_of_large_or_small_numbers_is_as_good(dtype, factor, capsys):
    np.save("scaled.npy", (W * factor).astype(dtype))
    [row] = rows_of(capsys, "scaled.npy", "--rank", "8", "--reducer", "rsvd:power_iterations=4")
    assert 1 <= row["ratio"] < 1.01


def test_a_norm_beyond_float64_is_one_line(capsys):
    np.save("huge.npy", np.full((3, 4), 1.7e308))
    assert "huge.npy: its norm overflows float64" in error_line(capsys, "huge.npy")


NEEDY = """
import lrbench

class Calibrated(lrbench.Reducer):
    \"\"\"Needs the inputs.\"\"\"
    name = "calibrated-only"
    needs = frozenset({"second_moment"})

    def reduce(self, weight, rank, context):
        raise AssertionError("must not be called")

class Choosy(lrbench.Reducer):
    \"\"\"Square matrices alone.\"\"\"
    name = "choosy"

    def reduce(self, weight, rank, context):
        raise AssertionError("must not be called")

    def supports(self, slot):
        return "not square"

@lrbench.hookimpl
def lrbench_reducers():
    return [Calibrated, Choosy]
"""


def test_what_needs_calibration_or_another_matrix_is_skipped_with_the_reason(capsys, tmp_path):
    (tmp_path / "needy.py").write_text(NEEDY)
    rows = rows_of(capsys, "w.npy", "--rank", "3", "--plugin", "needy.py")
    reasons = {row["reducer"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert "needs calibration (second_moment)" in reasons["calibrated-only"]
    assert "choosy does not support w.npy: not square" in reasons["choosy"]


def test_a_plugin_that_cannot_be_loaded_is_not_passed_over(capsys, tmp_path):
    (tmp_path / "broken.py").write_text("import nonsense_that_is_not_there\n")
    assert main(["matrix", "w.npy", "--plugin", "broken.py"]) == 2
    assert "nonsense_that_is_not_there" in capsys.readouterr().err
    assert main(["matrix", "w.npy", "--plugin", "broken.py", "--reducer", "svd"]) == 0


def test_every_format_has_the_rows(capsys):
    arguments = ["matrix", "w.npy", "--rank", "4", "25", "--reducer", "svd", "rsvd:oversample=0,power_iterations=2"]
    for form in ("terminal", "markdown", "csv", "json"):
        assert main([*arguments, "--format", form, "--output", f"table.{form}"]) == 1
        assert capsys.readouterr().out == ""
    texts = {form: Path(f"table.{form}").read_bytes().decode() for form in ("terminal", "markdown", "csv", "json")}
    assert "| svd | rank 4 | 4 | 0.7718 | 0.7718 | 1.000x | 256 | 0.267 |" in texts["markdown"]
    assert "Not reduced" in texts["terminal"]
    assert "\x1b" not in texts["terminal"]
    assert max(map(len, texts["terminal"].splitlines())) < 250
    rows = list(csv.DictReader(io.StringIO(texts["csv"], newline="")))
    data = json.loads(texts["json"])
    assert [row["label"] for row in rows] == [row["label"] for row in data["rows"]]
    assert [json.loads(row["params"]) for row in rows] == [row["params"] for row in data["rows"]]
    assert float(rows[0]["relative_error"]) == data["rows"][0]["relative_error"]
    assert data["matrix"]["shape"] == [24, 40]
    assert data["matrix"]["norm"] == pytest.approx(np.linalg.norm(W))


def test_names_in_a_file_escape_nowhere(capsys):
    key = "=1+1|\x1b[31m<script>"
    save_file({key: torch.from_numpy(W)}, "a.safetensors")
    arguments = ["matrix", "a.safetensors", "--rank", "25", "--reducer", "svd", "--format"]
    for form in ("terminal", "markdown", "csv"):
        assert main([*arguments, form]) == 1
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert form != "markdown" or "<script>" not in out


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("rsvd", {}),
        ("rsvd:oversample=0, power_iterations=2", {"oversample": 0, "power_iterations": 2}),
        ("id:side=columns,selection=lupp", {"side": "columns", "selection": "lupp"}),
    ],
)
def test_methods_are_read_as_they_are_typed(text, params):
    built = method(text, Registry.load())
    assert built.label == text
    assert params.items() <= dict(built.params).items()


def test_a_value_may_hold_commas_in_brackets_and_quotes():
    from lrbench.reduction.single_matrix import _split

    assert _split('a=[1, 2],b="x,y",c={d: 1, e: 2}') == ["a=[1, 2]", 'b="x,y"', "c={d: 1, e: 2}"]
    with pytest.raises(PluginError):
        method("svd:=3", Registry.load())


def test_a_matrix_outside_a_model_is_left_as_it_was():
    matrix = torch.from_numpy(W.copy())
    registry = Registry.load()
    outcomes = list(reduce_matrix(slot_of(matrix, "w"), [method("svd", registry)], [RankRequest("rank", 3)]))
    assert outcomes[0].edit.rank == 3
    assert np.array_equal(matrix.numpy(), W)
