"""Summarises a cell's edits: a short description (`all mlp (24)`, `L3 mlp.down`), ranks and errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lrbench.results.rows import Edit
from lrbench.suite.roles import GROUPS


def describe(edits: Sequence[Edit], blocks: int | None = None) -> str:
    """The edited weights by layers and roles, and their number if there are several.

    Args:
        blocks: the number of the model's decoder blocks; needed to write `all`.
    """
    roles_of_layer: dict[int, set[str]] = {}
    others: list[str] = []
    for edit in edits:
        if edit.layer is None or edit.role is None:
            others.append(edit.role or edit.weight)
        else:
            roles_of_layer.setdefault(edit.layer, set()).add(edit.role)
    layers_of_roles: dict[frozenset[str], list[int]] = {}
    for layer in sorted(roles_of_layer):
        layers_of_roles.setdefault(frozenset(roles_of_layer[layer]), []).append(layer)
    parts = [f"{_layers(layers, blocks)} {_roles(roles)}" for roles, layers in layers_of_roles.items()]
    if len(parts) > 2:  # a composition with different roles per layer is too long for a table
        parts = [_layers(sorted(roles_of_layer), blocks)]
    text = ", ".join([*parts, *dict.fromkeys(others)])
    return f"{text} ({len(edits)})" if len(edits) > 1 else text


def ranks(edits: Sequence[Edit]) -> str:
    """The rank, or the range of ranks."""
    edit_ranks = [edit.rank for edit in edits]
    if not edit_ranks:
        return ""
    return str(edit_ranks[0]) if min(edit_ranks) == max(edit_ranks) else f"{min(edit_ranks)}–{max(edit_ranks)}"


def relative_error(edits: Sequence[Edit]) -> float | None:
    """The root mean square of |W - What| / |W| over all edits, weighted by parameters.

    Approximates |W - What| / |W| of all matrices together, since rows do not store norms.
    """
    return _root_mean_square([(edit.relative_error, edit.shape) for edit in edits])


def optimal_error(edits: Sequence[Edit]) -> float | None:
    """The same for the Eckart-Young optimum at the edits' ranks; None if an edit has no optimum."""
    known = [(edit.optimal_error, edit.shape) for edit in edits if edit.optimal_error is not None]
    return _root_mean_square(known) if len(known) == len(edits) else None


def _root_mean_square(errors: Sequence[tuple[float, tuple[int, int]]]) -> float | None:
    parameters = sum(rows * columns for _, (rows, columns) in errors)
    if not parameters:
        return None
    return math.sqrt(math.fsum(rows * columns * error**2 for error, (rows, columns) in errors) / parameters)


def _roles(roles: Iterable[str]) -> str:
    left = set(roles)
    words = []
    for group, members in GROUPS.items():
        if group == "all":  # the others together
            continue
        if left.issuperset(members):
            words.append(group)
            left.difference_update(members)
        else:
            # mlp.up+down: the group is written once
            some = [member.removeprefix(f"{group}.") for member in members if member in left]
            if some:
                words.append(f"{group}.{'+'.join(some)}")
                left.difference_update(members)
    return ", ".join([*words, *sorted(left)])


def _layers(layers: Sequence[int], blocks: int | None) -> str:
    if blocks is not None and len(layers) == blocks and blocks > 1:
        return "all"
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return "L" + ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
