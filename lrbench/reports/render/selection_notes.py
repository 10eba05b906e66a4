"""What must be said under a table of how its lines were chosen, or were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lrbench.analysis.leaderboard import Leaderboard
from lrbench.results.rows import Selection

MANY = 8  # cells of one method, scored on the same documents, from which on the best of them needs a word of caution


def remarks(board: Leaderboard) -> list[str]:
    """Sentences on what was chosen where, among how many cells and on how many documents."""
    found = [selection for entry in board.entries if (selection := entry.row.selection) is not None]
    composed = _composed(board)
    if board.waiting and not found:
        return [
            f"Nothing is chosen yet: the run has {board.waiting} rows on validation documents (--validation shows "
            "them); the same command goes on where it stopped."
        ]
    screened = []
    if board.screened_out:
        screened = [
            f"{board.screened_out} cells were screened out by what a gradient predicts of them, and not scored; their "
            "rows say what was predicted."
        ]
    if any(selection.split == "validation" for selection in found):
        return [*_on_validation(found), *screened]
    if found:
        return [*_on_test([one for one in found if one.decisions is None]), *composed, *screened]
    return _not_selected(board)


def _on_test(found: list[Selection]) -> list[str]:
    by_aim: dict[str, list[Selection]] = {}
    for selection in found:
        if selection.chosen_for is not None:
            by_aim.setdefault(selection.chosen_for, []).append(selection)
    if not by_aim:
        return []
    of_aims = [
        f"{aim}, {_span(s.candidates or 0 for s in chosen)} cells on "
        f"{_span(sum((s.validated_on or {}).values()) for s in chosen)} documents"
        for aim, chosen in by_aim.items()
    ]
    return [
        "Each method is shown with the cell that was best on validation documents, by the main metric and then "
        f"log-loss ({'; '.join(of_aims)}); the scores here are of other documents, those of the test side."
    ]


def _composed(board: Leaderboard) -> list[str]:
    kept = [
        f"{entry.row.label} for {selection.chosen_for} {sum(one.accepted for one in selection.decisions)} of "
        f"{len(selection.decisions)}"
        for entry in board.entries
        if (selection := entry.row.selection) is not None and selection.decisions is not None
    ]
    if not kept:
        return []
    return [
        "Composed edits were decided on validation documents, from the last block down, the best of each block kept "
        f"where it was better than without: {', '.join(kept)}; the scores here are of test documents."
    ]


def _on_validation(found: list[Selection]) -> list[str]:
    sizes = max((selection.documents for selection in found), key=lambda documents: sum(documents.values()))
    sentences = [
        f"These are the {sum(sizes.values()):,} validation documents, which cells are chosen on: the best of many "
        "looks better here than it is. What was chosen is judged on test documents, without --validation."
    ]
    stopped = [selection for selection in found if selection.stopped]
    if stopped:
        asked = sum(sum(selection.documents.values()) for selection in found)
        sentences.append(
            f"In the race {len(stopped)} of {len(found)} rows stopped before the last document; their scores are of "
            f"the documents before, {asked / len(found):,.0f} of {sum(sizes.values()):,} a row on average."
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
        f"Up to {largest} cells of one method are scored on the same documents here: the best of them looks better "
        "than it is. `select` in the suite chooses on some documents and reports on others."
    ]


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
