"""Turns pydantic's errors into one line for the user: `file:line:column: message`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from lrbench.errors import SuiteError
from lrbench.suite.yaml_reader import Document, KeyPath, describe, unknown_key
from lrbench.system.text import did_you_mean

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_EXAMPLES = {
    ("models",): "{name: almanac} or {pretrained: org/name}",
    ("tasks",): "{task: hellaswag, limit: 100}",
    ("sweep",): "{weights: [mlp], rank: {keep: 0.5}}",
    ("sweep", "rank"): "{keep: [0.5, 0.25]}",
    ("calibration",): "{text: ./text.txt, samples: 128}",
    ("calibration", "text"): "{task: wikitext}",
    ("delta",): "{base: org/name}",
    ("delta", "base"): "{name: almanac} or {pretrained: org/name}",
    ("select",): "{validation: 0.2}, or true",
    ("race",): "{alpha: 0.05, margin: 0.01}, or true",
    ("screen",): "gradient, or {documents: 100, top: 32}",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def misplaced(message: str, *at: str | int, key: bool = False) -> PydanticCustomError:
    """An error for a validator to raise, placed at the model's path followed by the steps `at`.

    Args:
        message: the whole message.
        at: keys and indices from the model to the wrong entry.
        key: whether the key at that place is wrong, not its value.
    """
    return PydanticCustomError("misplaced", "{message}", {"message": message, "at": at, "key": key})


def suite_error(
    error: ValidationError,
    document: Document,
    written: Callable[[KeyPath], KeyPath],
    models: Mapping[tuple[str, ...], type[BaseModel]],
) -> SuiteError:
    """The most useful of pydantic's errors.

    An unknown key comes first, since a misspelt key is also a missing one; then wrong values in the order of the file;
    then missing keys.

    Args:
        error: pydantic's errors.
        document: has the place of each value.
        written: maps a path in the validated data to its path in the file.
        models: the model at each path without indices; gives the known keys.
    """

    def order(details: ErrorDetails) -> tuple[int, tuple[int, int]]:
        place = document.place(written(_path(details)), key=_at_key(details))
        return {"extra_forbidden": 0, "missing": 2}.get(details["type"], 1), (place.line, place.column)

    # pydantic counts the valid entries of a list, so it also reports a list with a single, wrong entry as too short
    candidates = [details for details in error.errors() if not (details["type"] == "too_short" and details["input"])]
    first = min(candidates, key=order)
    return document.error(written(_path(first)), _message(first, written(_path(first)), models), key=_at_key(first))


def _path(details: ErrorDetails) -> KeyPath:
    return (*details["loc"], *details.get("ctx", {}).get("at", ()))


def _at_key(details: ErrorDetails) -> bool:
    return details["type"] == "extra_forbidden" or bool(details.get("ctx", {}).get("key"))


def _message(details: ErrorDetails, path: KeyPath, models: Mapping[tuple[str, ...], type[BaseModel]]) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    words = tuple(step for step in details["loc"] if isinstance(step, str))
    name = next((step for step in reversed(path) if isinstance(step, str)), "the suite")
    if kind == "misplaced":
        return context["message"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return unknown_key(name, _keys(models, words[:-1]))
    if kind == "missing":
        return f"missing key {name!r}" if words != ("models",) else "missing key 'model' (or 'models', a list)"
    if kind in _EXPECTED:
        quote = "; quote it" if kind == "string_type" and isinstance(value, bool | int | float) else ""
        example = f", such as {_EXAMPLES[words]}" if words in _EXAMPLES and _EXPECTED[kind] == "a mapping" else ""
        return f"{name!r} takes {_EXPECTED[kind]}{example}, not {describe(value)}{quote}"
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        limit = f"{context[bound]:g}" if context[bound] != 2**63 else "2**63"
        return f"{name!r} must be {word} {limit}, not {describe(value)}"
    if kind in ("too_short", "string_too_short"):
        return f"{name!r} must not be empty"
    if kind == "string_too_long":
        return f"{name!r} takes at most {context['max_length']} characters, not {len(str(value))}"
    if kind == "literal_error":
        known = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        return f"unknown {name} {describe(value).removesuffix(' (a string)')}{hint or '; known: ' + ', '.join(known)}"
    return f"{name!r}: {details['msg'][:1].lower()}{details['msg'][1:]}, got {describe(value)}"


def _keys(models: Mapping[tuple[str, ...], type[BaseModel]], words: tuple[str, ...]) -> list[str]:
    keys = list(models[words].model_fields)
    return keys if words else [key for name in keys for key in (["model", name] if name == "models" else [name])]
