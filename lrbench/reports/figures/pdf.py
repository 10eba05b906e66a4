"""PDFs in one order of objects: the writer's follows a hash table's, which differs from one call to the next."""

from __future__ import annotations

import re

_REFERENCE = re.compile(rb"\b(\d+) 0 R\b")
_OBJECT = re.compile(rb"(\d+) 0 obj\n")
# Resources of one kind: `/fo0 1 0 R`, a line each, in a dictionary of their own.
_RESOURCES = re.compile(rb"(?<=<<\n)(?:[ ]+/[A-Za-z]+\d+ \d+ 0 R\n)+")


def ordered(pdf: bytes) -> bytes:
    """The same document with its objects numbered and written in the order in which they are first referred to.

    Args:
        pdf: with a plain table of cross references and no object that another revision replaces, as vl-convert writes.

    Raises:
        ValueError: it is something else.
    """
    last = re.search(rb"startxref\s+(\d+)\s+%%EOF\s*\Z", pdf)
    table = int(last[1]) if last else len(pdf)
    head, _, trailer = pdf[table:].partition(b"trailer")
    if not head.startswith(b"xref\n0 ") or not trailer:
        raise ValueError("no plain table of cross references")
    offsets = sorted(int(line[:10]) for line in head.splitlines()[2:] if line[17:18] == b"n")
    objects: dict[bytes, tuple[bytes, bytes]] = {}
    for start, end in zip(offsets, [*offsets[1:], table], strict=True):
        opening = _OBJECT.match(pdf, start)
        if opening is None:
            raise ValueError(f"no object at byte {start}")
        # What is in a stream is not looked at.
        before, stream, rest = pdf[opening.end() : end].partition(b"\nstream\n")
        objects[opening[1]] = _RESOURCES.sub(_sorted, before), stream + rest
    trailer = trailer[: trailer.rindex(b"startxref")]

    found: dict[bytes, int] = {}
    waiting = list(reversed(_REFERENCE.findall(trailer)))
    while waiting:
        name = waiting.pop()
        if name in objects and name not in found:
            found[name] = len(found) + 1
            waiting += reversed(_REFERENCE.findall(objects[name][0]))

    def renumbered(text: bytes) -> bytes:
        return _REFERENCE.sub(lambda match: b"%d 0 R" % found[match[1]], text)

    parts, places, at = [pdf[: offsets[0]]], [], offsets[0]
    for name, number in found.items():
        places.append(at)
        parts.append(b"%d 0 obj\n" % number + renumbered(objects[name][0]) + objects[name][1])
        at += len(parts[-1])
    parts.append(b"xref\n0 %d\n0000000000 65535 f\r\n" % (len(places) + 1))
    parts += [b"%010d 00000 n\r\n" % place for place in places]
    size = re.sub(rb"/Size \d+", b"/Size %d" % (len(places) + 1), renumbered(trailer))
    return b"".join([*parts, b"trailer", size, b"startxref\n%d\n%%%%EOF" % at])


def _sorted(match: re.Match[bytes]) -> bytes:
    return b"".join(sorted(match[0].splitlines(keepends=True)))
