"""Layouts of a slot's matrix W (out, in) in its parameter: plain, transposed, stacked, or some rows of a fused matrix.

`lrbench.models.families` assigns layouts to parameters by model type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """The rows `start` to `stop` of each of `groups` equal groups of rows of a fused matrix.

    A single group gives a block of rows; a group per head, key-value head or neuron gives interleaved rows. The part's
    matrix concatenates the rows of all groups.
    """

    groups: int
    start: int
    stop: int

    def view(self, matrix: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The part as a view of `matrix`, with `dim` split into two: (groups, stop - start)."""
        size = matrix.shape[dim] // self.groups
        dim %= matrix.ndim
        return matrix.unflatten(dim, (self.groups, size)).narrow(dim + 1, self.start, self.stop - self.start)


@dataclass(frozen=True)
class MatrixLayout:
    """The position of a slot's matrix in a parameter.

    Attributes:
        expert: index in a stack of matrices; None if the parameter is a single matrix.
        transposed: whether it is stored as (in, out): Conv1D, some stacked experts, and embeddings (of one-hot inputs).
        rows: the slot's rows of the matrix (out, in); None for all.
    """

    expert: int | None = None
    transposed: bool = False
    rows: Rows | None = None

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        """The slot's matrix (out, in): a view of `parameter` if strides allow, else a copy."""
        view = self._view(parameter)
        return view if self.rows is None else view.flatten(0, 1)

    def write(self, parameter: torch.Tensor, matrix: torch.Tensor) -> None:
        """Writes `matrix` (out, in) to the slot's position in `parameter`."""
        view = self._view(parameter)
        view.copy_(matrix if self.rows is None else matrix.unflatten(0, view.shape[:2]))

    def of_output(self, output: torch.Tensor) -> torch.Tensor:
        """The slot's part (..., out) of its module's output (..., all rows)."""
        return output if self.rows is None else self.rows.view(output, dim=-1).flatten(-2)

    def shape(self, parameter: torch.Tensor) -> tuple[int, int]:
        """(out, in), without reading data."""
        view = self._view(parameter)
        return (view.shape[0], view.shape[1]) if self.rows is None else (view.shape[:2].numel(), view.shape[2])

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two layouts at the same position of a parameter."""
        return self.expert, self.rows

    def _view(self, parameter: torch.Tensor) -> torch.Tensor:
        """(out, in), or (groups, rows per group, in)."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else self.rows.view(matrix)
