"""Where one algorithm overtakes another: the constants in `lrbench/linalg` come from here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from decompose_methods import weight_like
from lrbench import linalg
from lrbench.linalg import sketch


def crossovers(threads: int, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Tables of both algorithms' seconds, and the constants that follow from them."""
    tables, constants = [], []
    for make in (_kernels, _spectra, _pivots, _sketches):
        table, constant = make(quick, say)
        tables.append(table)
        constants += [constant] if constant else []
    return {"threads": threads, "tables": tables, "constants": constants}


def _kernels(quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    rows = []
    for s in (128, 256) if quick else (256, 512, 1024, 2048):
        say(f"kernels of {s}")
        W = weight_like(s, 2 * s).double()
        G = linalg.gram(W)
        rows.append(
            [s, _best(torch.matmul, W, W.T), _best(linalg.gram, W), _best(torch.linalg.eigh, G),
             _best(linalg.eigenvectors, G)]
        )  # fmt: skip
    columns = ["s", "W @ W.T", "gram", "torch.linalg.eigh", "eigenvectors"]
    return {
        "title": "Symmetric product and eigenvectors, float64, s x 2s, seconds",
        "columns": columns,
        "rows": rows,
    }, ""


def _spectra(quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    rows = []
    for m in (128, 256) if quick else (256, 512, 1024, 2048):
        for aspect in (1, 2, 4) if m <= 1024 else (1,):
            say(f"spectrum of {m} x {aspect * m}")
            W = weight_like(m, aspect * m)
            rows.append(
                [
                    m,
                    aspect * m,
                    _best(linalg.Spectrum, W),
                    _best(torch.linalg.svd, W, full_matrices=False),
                ]
            )
    slower = [f"{m} x {n}" for m, n, ours, theirs in rows if ours > theirs]
    said = f"Where torch.linalg.svd of W in float32 is the faster one: {', '.join(slower) or 'nowhere here'}."
    columns = ["m", "n", "Gram and eigenvectors", "torch.linalg.svd"]
    return {"title": "Spectrum of an m x n matrix, seconds", "columns": columns, "rows": rows}, said


def _pivots(quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    rows, found = [], []
    for s in (128, 256) if quick else (256, 512, 1024, 2048):
        say(f"pivoted Cholesky of {s}")
        G = linalg.gram(weight_like(s, s))
        whole = _best(linalg.pivoted_cholesky, G, s, algorithm="lapack")
        low, high = 1, s  # the largest rank at which the blocked one is sooner done
        while high - low > max(1, s // 64):
            k = (low + high) // 2
            sooner = _best(linalg.pivoted_cholesky, G, k, algorithm="blocked") < whole
            low, high = (k, high) if sooner else (low, k)
        found.append(s**1.5 / low)
        rows.append([s, whole, low, low / s, found[-1]])
    said = (
        f"LAPACK_FROM: s^1.5 / k is {statistics.median(found):.0f} in the median; in use {linalg.cholesky.LAPACK_FROM}."
    )
    columns = ["s", "lapack, to the end", "blocked sooner up to k", "of the rank", "s^1.5 / k"]
    return {"title": "Pivoted Cholesky of an s x s Gram, seconds", "columns": columns, "rows": rows}, said


def _sketches(quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    rows, found = [], []
    for m, n in ((128, 512),) if quick else ((512, 512), (512, 2048), (1024, 1024), (1024, 4096), (2048, 2048)):
        say(f"sketches of {m} x {n}")
        W = weight_like(m, n)
        for share in (0.05, 0.1, 0.25, 0.5):
            l, q = int(share * m) + 8, 2  # noqa: E741
            seconds = _best(_by_gram, W, l, q), _best(_direct, W, l, q)
            operations = sketch.gram_operations((m, n), l, q), sketch.sketch_operations((m, n), l, q)
            worth = (operations[0] / operations[1]) / (seconds[0] / seconds[1])
            found.append(worth)
            rows.append([m, n, l, *seconds, operations[0] / operations[1], worth])
    said = f"GRAM_WORTH: {statistics.median(found):.2f} in the median; in use {sketch.GRAM_WORTH}."
    columns = ["m", "n", "columns", "gram", "sketch", "operations, gram / sketch", "worth"]
    return {
        "title": "Randomized SVD by a Gram and by products with W, float32, seconds",
        "columns": columns,
        "rows": rows,
    }, said


def _by_gram(W: torch.Tensor, columns: int, power_iterations: int) -> None:
    G = linalg.gram(W, W.dtype)
    Q = linalg.range_finder(W, columns, power_iterations, torch.Generator().manual_seed(0), G)
    Q.T @ (G @ Q), Q.T @ W


def _direct(W: torch.Tensor, columns: int, power_iterations: int) -> None:
    Q = linalg.range_finder(W, columns, power_iterations, torch.Generator().manual_seed(0))
    linalg.gram(Q.T @ W)


def _best(call: Callable[..., object], *arguments: object, **options: object) -> float:
    call(*arguments, **options)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        call(*arguments, **options)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
