"""What `decompose.py` compares: matrices, lrbench's reducers, and the tools one would take instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import lrbench
import lrbench.models.almanac
from lrbench.reducers.registry import Registry

RANKS = (0.05, 0.10, 0.25, 0.50)  # of min(m, n)


def weight_like(m: int, n: int, seed: int = 0) -> Tensor:
    """(m, n) float32: random singular vectors, a slowly decaying spectrum with four outliers, some heavy columns.

    sigma_j is 1 / (1 + 20 j / s) ** 0.7 with s = min(m, n), the first four of them eight times as large: 10% of the
    rank holds about two thirds of the energy, and half of the rank leaves a relative error of about a quarter.
    """
    generator = torch.Generator().manual_seed(seed)
    s = min(m, n)
    U = torch.linalg.qr(torch.randn(m, s, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(n, s, generator=generator)).Q
    sigma = (1 + 20 * torch.arange(s) / s) ** -0.7
    sigma[:4] *= 8
    W = (U * sigma) @ V.T
    W[:, torch.randperm(n, generator=generator)[: n // 100 + 1]] *= 3
    return W


def almanac_weights() -> list[Tensor]:
    """Every matrix of the bundled model's blocks, float32."""
    from safetensors.torch import load_file

    tensors = load_file(Path(lrbench.models.almanac.__file__).parent / "checkpoint" / "model.safetensors")
    return [W.float() for name, W in sorted(tensors.items()) if ".layers." in name and W.dim() == 2]


#: What one method gives for the ranks of a sweep, one matrix at a time: (out, in) as it would stand in for W.
Sweep = Callable[[Tensor, Sequence[int]], Iterator[Callable[[], Tensor]]]


@dataclass(frozen=True)
class Contestant:
    """A method: `run(W, ranks)` yields, rank by rank, a function that forms Ŵ, which is not timed.

    Attributes:
        name: as the table has it.
        run: the work that is timed is what making and going through the iterator takes.
        rival: the contestant that it is held against.
        targets: how many times faster than the rival it is to be, by shape (m, n); None stands for all others.
        about: what stands under the table.
    """

    name: str
    run: Sweep
    rival: str | None = None
    targets: Mapping[tuple[int, int] | None, float] = field(default_factory=dict)
    about: str = ""

    def target(self, m: int, n: int) -> float | None:
        """What is to be reached on an (m, n) matrix; None where nothing was set."""
        return self.targets.get((m, n), self.targets.get(None))


def _reducer(name: str, **params: object) -> Sweep:
    reducer = Registry.load().build(name, params)

    def run(W: Tensor, ranks: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
        slot = lrbench.Slot("matrix", None, None, (W.shape[0], W.shape[1]))
        prepared = reducer.prepare(W, ranks, lrbench.Context.seeded(slot, reducer))
        for rank in ranks:
            yield prepared.at_rank(rank).dense

    return run


def _torch_svd(W: Tensor, ranks: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for rank in ranks:
        left, right = U[:, :rank] * S[:rank], Vh[:rank].contiguous()
        yield lambda left=left, right=right: left @ right  # type: ignore[misc]


def _svd_lowrank(W: Tensor, ranks: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
    for rank in ranks:
        U, S, V = torch.svd_lowrank(W, q=rank, niter=2)
        left, right = U * S, V.T.contiguous()
        yield lambda left=left, right=right: left @ right  # type: ignore[misc]


def _sklearn(W: Tensor, ranks: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
    from sklearn.utils.extmath import randomized_svd

    for rank in ranks:
        U, S, Vh = randomized_svd(W.numpy(), rank, random_state=0)
        left, right = torch.from_numpy(U * S), torch.from_numpy(Vh)
        yield lambda left=left, right=right: left @ right  # type: ignore[misc]


def _interpolative(W: Tensor, ranks: Sequence[int]) -> Iterator[Callable[[], Tensor]]:
    import scipy.linalg.interpolative as interpolative

    wide = W.shape[0] <= W.shape[1]
    A = (W.T if wide else W).double().numpy()  # scipy chooses columns; so the shorter side is chosen from, as `id` does
    for rank in ranks:
        order, T = interpolative.interp_decomp(A.copy(), rank, rand=False)  # it works in place
        skeleton = A[:, order[:rank]]

        def dense(order=order, T=T, skeleton=skeleton) -> Tensor:  # type: ignore[no-untyped-def]
            whole = torch.from_numpy(interpolative.reconstruct_matrix_from_id(skeleton, order, T))
            return (whole.T if wide else whole).to(W.dtype)

        yield dense


def contestants(device: str) -> list[Contestant]:
    """Ours, each followed by what it is held against."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    found = [
        Contestant("svd", _reducer("svd"), "torch.linalg.svd", {(1024, 4096): 3.0, (4096, 16384): 20.0}),
        Contestant("torch.linalg.svd", _torch_svd, about="one SVD, truncated to each rank; the default driver"),
        Contestant(
            "rsvd", _reducer("rsvd"), "torch.svd_lowrank", {None: 1.0, (4096, 4096): 1.3},
            about="oversample 8, two power iterations, one sketch for all ranks",
        ),
        Contestant("torch.svd_lowrank", _svd_lowrank, about="q = k, niter = 2, once a rank"),
    ]  # fmt: skip
    if device == "cpu":
        found.append(
            Contestant("sklearn randomized_svd", _sklearn, about="10 columns of oversampling, n_iter auto, once a rank")
        )
    found.append(
        Contestant("id", _reducer("id"), "scipy interp_decomp", {None: 10.0}, about="one Cholesky for all ranks")
        if device == "cpu"
        else Contestant("id", _reducer("id"), about="one Cholesky for all ranks")
    )
    if device == "cpu":
        found.append(
            Contestant(
                "scipy interp_decomp",
                _interpolative,
                about="deterministic (rand=False) pivoted QR in float64, once a rank",
            )
        )
    else:
        about = "four power iterations: within half a percent of the optimum"
        found.append(Contestant("rsvd, 4 iterations", _reducer("rsvd", power_iterations=4), about=about))
    return found
