"""Reports of headings, sentences and tables, for the terminal or as Markdown."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from lrbench.reports.render.csv import field
from lrbench.reports.render.markdown import escape, line
from lrbench.reports.render.number_format import clean


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        headings: of the columns; line breaks appear only in the terminal.
        rows: one text per column.
        words: the number of leading columns with text instead of numbers.
        sections: indices of the rows that have a line above them.
        faint: indices of the rows that are dimmed in the terminal.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    sections: frozenset[int] = frozenset()
    faint: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Heading:
    """A heading within a document."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Points of a few sentences; the first sentence of each is emphasised."""

    points: Sequence[Sequence[str]]


#: A paragraph is a plain string.
Part = str | Heading | Listing | Table


@dataclass(frozen=True)
class TextReport:
    """A title and parts of plain text without markup."""

    title: str
    parts: Sequence[Part]


def markdown(document: TextReport) -> str:
    """The document as GitHub Markdown."""
    lines = [f"# {escape(document.title)}", ""]
    for part in document.parts:
        match part:
            case Heading(text):
                lines += [f"## {escape(text)}"]
            case Listing(points):
                for first, *others in points:
                    lines += [" ".join([f"- **{escape(first)}**", *map(escape, others)])]
            case Table(headings, rows, words):
                marks = [":--" if index < words else "--:" for index in range(len(headings))]
                lines += [line([escape(heading) for heading in headings]), line(marks)]
                lines += [line([escape(cell) for cell in row]) for row in rows]
            case _:
                lines += [escape(part)]
        lines.append("")
    return "\n".join(lines)


def terminal(document: TextReport, width: int | None = None) -> str:
    """Plain text without escape sequences; by default as wide as the widest table."""
    out = io.StringIO()
    Console(file=out, width=width or _natural_width(document), color_system=None, force_terminal=False).print(
        *_renderables(document), sep="\n"
    )
    return "\n".join(text.rstrip() for text in out.getvalue().splitlines()) + "\n"


def show(document: TextReport, console: Console | None = None) -> None:
    """Prints to a console, by default standard output; lines are not folded in a pipe."""
    console = console or Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.file.write(terminal(document))
        return
    console.print(*_renderables(document), sep="\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV (RFC 4180) in full precision; fields as in `render.csv.field`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([field(name) for name in header])
    writer.writerows([field(value) for value in row] for row in rows)
    return text.getvalue()


def _natural_width(document: TextReport) -> int:
    tables = [part for part in document.parts if isinstance(part, Table)]
    roomy = Console(width=10_000, color_system=None)
    return min(400, max([100, *(roomy.measure(_rich(table)).maximum for table in tables)]))


def _renderables(document: TextReport) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(clean(document.title), style="bold"), Text()]
    for part in document.parts:
        match part:
            case Heading(text):
                parts.append(Text(clean(text), style="bold"))
            case Listing(points):
                for first, *others in points:
                    parts += [Text(clean(first), style="bold"), *(Text(f"  {clean(other)}") for other in others)]
            case Table():
                parts.append(_rich(part))
            case _:
                parts.append(Text(clean(part), style="dim"))
        parts.append(Text())
    return parts[:-1]


def _rich(table: Table) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, heading in enumerate(table.headings):
        left = index < table.words
        title = "\n".join(map(clean, heading.split("\n")))
        shown.add_column(Text(title), justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for index, row in enumerate(table.rows):
        if index in table.sections:
            shown.add_section()
        shown.add_row(*(Text(clean(cell)) for cell in row), style="dim" if index in table.faint else "")
    return shown
