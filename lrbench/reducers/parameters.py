"""A reducer's parameters: validation of a suite's values, and descriptions for `lrbench plugins show`."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from lrbench.errors import FOREIGN, PluginError
from lrbench.reducers.base import Reducer
from lrbench.system.text import did_you_mean, one_line

#: Attributes in which a reducer describes its method; they may be properties that depend on parameters.
DECLARED = ("rank_of", "randomized", "one_preparation")


class Parameter(NamedTuple):
    """One parameter as `lrbench plugins show` prints it."""

    name: str
    type: str
    default: Any
    doc: str


class ParameterError(PluginError):
    """A parameter of a reducer is unknown or has a wrong value.

    Attributes:
        parameter: its name, with which a suite finds the line; None if the combination is invalid.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


def build(reducer: type[Reducer], params: Mapping[str, Any]) -> Reducer:
    """Constructs a reducer with the parameters `params`, and defaults for the others.

    Integers are accepted for floats and lists for tuples, but neither strings for numbers nor booleans for integers.

    Raises:
        ParameterError: an unknown parameter, a value of a wrong type, or a combination that the reducer rejects.
        PluginError: an attribute in `DECLARED` is invalid.
    """
    hints = typing.get_type_hints(reducer, include_extras=True)
    known = [field.name for field in _fields(reducer)]
    values = {}
    for name, value in params.items():
        if name not in known:
            listed = f"; it has {', '.join(known)}" if known else "; it has none"
            hint = did_you_mean(str(name), known) or listed
            raise ParameterError(f"{reducer.name}: unknown parameter {name!r}{hint}", str(name))
        try:
            # JSON's strict mode takes lists as tuples and 8 as a float, but neither "8" nor true as an integer
            values[name] = TypeAdapter(hints[name]).validate_json(json.dumps(value, allow_nan=False), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            problem = problem.removeprefix("Value error, ").removeprefix("Input ")
            wanted = f" ({type_text(hints[name])})" if len(error.errors()) > 1 else ""
            raise ParameterError(f"{reducer.name}: {name}: {problem}{wanted}, got {value!r}", name) from None
        except (TypeError, ValueError) as error:
            raise ParameterError(f"{reducer.name}: {name}: {one_line(error)}", name) from None
    try:
        built = reducer(**values)
    except Exception as error:  # __post_init__ is the plugin's own code
        text = " ".join(str(error).split()) if isinstance(error, ValueError) and str(error) else one_line(error)
        raise ParameterError(f"{reducer.name}: {text}") from error
    wrong = _unreadable(built)
    if wrong is not None:
        raise PluginError(f"reducer {reducer.name!r} ({reducer.__module__}): {wrong}")
    return built


def describe(reducer: type[Reducer]) -> list[Parameter]:
    """Name, type, default and documentation of each parameter."""
    hints = typing.get_type_hints(reducer, include_extras=True)
    described = []
    for field in _fields(reducer):
        hint = hints[field.name]
        metadata = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        doc = next((entry for entry in metadata if isinstance(entry, str)), "")
        default = field.default_factory() if callable(field.default_factory) else field.default
        described.append(Parameter(field.name, type_text(hint), default, doc))
    return described


def values(reducer: Reducer) -> dict[str, Any]:
    """All parameters of a reducer, including defaults, as plain JSON data."""
    return {field.name: to_jsonable_python(getattr(reducer, field.name)) for field in _fields(reducer)}


def problems(reducer: type[Reducer]) -> str | None:
    """Why a class's parameters are invalid; None if they are valid."""
    for field in _fields(reducer):
        if field.name == "label":
            return "a parameter must not be called 'label': suites use that word to tell reducers apart"
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"parameter {field.name!r} has no default"
    try:
        hints = typing.get_type_hints(reducer, include_extras=True)
        for field in _fields(reducer):
            TypeAdapter(hints[field.name])
        built = reducer()
    except Exception as error:  # annotations and __post_init__ are the plugin's own code
        return f"its parameters cannot be used: {one_line(error)}"
    return _unreadable(built)


def _unreadable(reducer: Reducer) -> str | None:
    """Why an attribute in `DECLARED` is invalid; None if all are valid. Properties run the plugin's code."""
    for name in DECLARED:
        try:
            value = getattr(reducer, name)
        except FOREIGN as error:
            return f"its {name} fails: {one_line(error)}; mend the property"
        if name in ("randomized", "one_preparation") and not isinstance(value, bool):
            return f"its {name} is {value!r}; it is True or False"
    return None


def type_text(hint: Any) -> str:
    """A type as written in source code: `int`, `float | None`, `'qr' | 'svd'`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not arguments:
        return hint.__name__
    return str(hint).replace("typing.", "")


def _fields(reducer: Reducer | type[Reducer]) -> tuple[dataclasses.Field[Any], ...]:
    # `Reducer.__init_subclass__` makes dataclasses of its subclasses, which a type checker cannot see
    return dataclasses.fields(reducer)  # type: ignore[arg-type]
