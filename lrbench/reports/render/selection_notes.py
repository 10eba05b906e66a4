"""Notes under a table on how its rows were chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lrbench.analysis.leaderboard import Leaderboard
from lrbench.results.rows import Selection

MANY = 8  # cells of one method on the same documents, from which on the best of them needs a caution


def remarks(board: Leaderboard) -> list[str]:
    """Sentences on the choices: among how many cells, on how many documents."""
    selections = [selection for entry in board.entries if (selection := entry.row.selection) is not None]
    composed = _composed(board)
    if board.waiting and not selections:
        return [
            f"Nothing is chosen yet: the run has {board.waiting} rows on validation documents (--validation shows "
            "them); repeat the command to resume it."
        ]
    screened = []
    if board.screened_out:
        screened = [
            f"{board.screened_out} cells were screened out by a gradient-based prediction, which their rows record, "
            "and not scored."
        ]
    if any(selection.split == "validation" for selection in selections):
        return [*_on_validation(selections), *screened]
    if selections:
        return [*_on_test([selection for selection in selections if selection.decisions is None]), *composed, *screened]
    return _not_selected(board)


def _on_test(selections: list[Selection]) -> list[str]:
    by_choice: dict[str, list[Selection]] = {}
    for selection in selections:
        if selection.chosen_for is not None:
            by_choice.setdefault(selection.chosen_for, []).append(selection)
    if not by_choice:
        return []
    choices = [
        f"{choice}, {_span(s.candidates or 0 for s in chosen)} cells on "
        f"{_span(sum((s.validated_on or {}).values()) for s in chosen)} documents"
        for choice, chosen in by_choice.items()
    ]
    return [
        "Each method is shown with the cell that was best on validation documents, by the main metric and then "
        f"log-loss ({'; '.join(choices)}); the scores are on the test documents."
    ]


def _composed(board: Leaderboard) -> list[str]:
    kept = [
        f"{entry.row.label} for {selection.chosen_for} {sum(decision.accepted for decision in selection.decisions)} of "
        f"{len(selection.decisions)}"
        for entry in board.entries
        if (selection := entry.row.selection) is not None and selection.decisions is not None
    ]
    if not kept:
        return []
    return [
        "Composed edits were chosen on validation documents, from the last block down; the best edit of each block was "
        f"kept if it improved the score: {', '.join(kept)}; the scores are on the test documents."
    ]


def _on_validation(selections: list[Selection]) -> list[str]:
    sizes = max((selection.documents for selection in selections), key=lambda documents: sum(documents.values()))
    sentences = [
        f"These are the {sum(sizes.values()):,} validation documents, on which cells are chosen: the best of many "
        "looks better here than it is. Without --validation, the chosen cells are shown on test documents."
    ]
    stopped = [selection for selection in selections if selection.stopped]
    if stopped:
        scored = sum(sum(selection.documents.values()) for selection in selections)
        sentences.append(
            f"In the race {len(stopped)} of {len(selections)} rows stopped before the last document; on average a row "
            f"is scored on {scored / len(selections):,.0f} of {sum(sizes.values()):,} documents."
        )
    return sentences


def _not_selected(board: Leaderboard) -> list[str]:
    methods = Counter(
        (entry.run, entry.row.model, entry.row.label)
        for entry in board.entries
        if entry.row.mode in ("each", "layer") and not entry.baseline
    )
    largest = max(methods.values(), default=0)
    if largest < MANY:
        return []
    return [
        f"Up to {largest} cells of one method are scored on the same documents: the best of them looks better than "
        "it is. `select` in the suite chooses on some documents and reports on others."
    ]


def _span(numbers: Iterable[int]) -> str:
    distinct = sorted(set(numbers))
    return f"{distinct[0]:,}" if len(distinct) == 1 else f"{distinct[0]:,} to {distinct[-1]:,}"
