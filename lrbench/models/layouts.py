"""How a slot's matrix W (out, in) lies in its parameter: as it is, transposed, one of a stack, rows of a fused one.

Nothing here knows a model; `lrbench.models.families` says which layout a parameter has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Some rows of a fused matrix: of `groups` equal groups of rows, the rows `start` to `stop` of each.

    One group is a plain block of rows. A group for each head (or for each key-value head, or for each neuron) is an
    interleaving: the part's own rows are then those of its groups, one group after the other.
    """

    groups: int
    start: int
    stop: int

    def view(self, matrix: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The part of `matrix` along `dim`, which becomes two, (groups, stop - start): a view, whatever the strides."""
        size = matrix.shape[dim] // self.groups
        dim %= matrix.ndim
        return matrix.unflatten(dim, (self.groups, size)).narrow(dim + 1, self.start, self.stop - self.start)


@dataclass(frozen=True)
class Layout:
    """Where in a parameter the matrix of a slot lies.

    Attributes:
        expert: index in a stack of matrices; None where the parameter is one matrix.
        transposed: stored as (in, out): Conv1D, some stacks of experts, and embeddings (which map a one-hot vector).
        rows: which rows of the matrix (out, in) make the slot; None for all.
    """

    expert: int | None = None
    transposed: bool = False
    rows: Rows | None = None

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        """The slot's matrix (out, in): a view of `parameter` where its strides allow one, else a copy."""
        view = self._view(parameter)
        return view if self.rows is None else view.flatten(0, 1)

    def write(self, parameter: torch.Tensor, matrix: torch.Tensor) -> None:
        """Writes `matrix` (out, in) where the slot's lies in `parameter`, and nothing else."""
        view = self._view(parameter)
        view.copy_(matrix if self.rows is None else matrix.unflatten(0, view.shape[:2]))

    def of_output(self, output: torch.Tensor) -> torch.Tensor:
        """What the slot's rows make of the output (..., all rows) of the module that holds them: (..., out)."""
        return output if self.rows is None else self.rows.view(output, dim=-1).flatten(-2)

    def shape(self, parameter: torch.Tensor) -> tuple[int, int]:
        """(out, in), without touching a number."""
        view = self._view(parameter)
        return (view.shape[0], view.shape[1]) if self.rows is None else (view.shape[:2].numel(), view.shape[2])

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two layouts of one parameter that hold the same numbers of it."""
        return self.expert, self.rows

    def _view(self, parameter: torch.Tensor) -> torch.Tensor:
        """(out, in), or (groups, rows of each, in)."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else self.rows.view(matrix)
