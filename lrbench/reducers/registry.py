"""Finds reducers in entry points of group `lrbench` and in plugin files. A broken plugin does not affect the others."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from lrbench.errors import FOREIGN, PluginError
from lrbench.reducers import hookspecs
from lrbench.reducers.source_hash import source_hash
from lrbench.system.text import did_you_mean, one_line

if TYPE_CHECKING:
    from lrbench.reducers.base import Reducer
    from lrbench.reducers.parameters import Parameter

GROUP = "lrbench"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin, or one class of it, that cannot be used.

    Attributes:
        source: the file, or the distribution and module.
        error: why, in one line.
        names: the possible names of its reducers, as far as known.
    """

    source: str
    error: str
    names: tuple[str, ...] = ()


class Registry:
    """The available reducers, and the plugins that failed to load.

    Attributes:
        reducers: classes by name, built-in ones first.
        broken: plugins that failed to load; requesting one of their names raises the error.
    """

    def __init__(
        self,
        files: Iterable[Path | str] = (),
        classes: Iterable[type[Reducer]] = (),
        *,
        entries: Iterable[EntryPoint] | None = None,
    ) -> None:
        """Loads all plugins.

        Args:
            files: plugin files, and folders of plugin files (without `_*.py` and `test_*.py`).
            classes: reducers outside plugins, such as those of a notebook.
            entries: entry points, by default the installed ones.

        Raises:
            PluginError: a file is missing, the name of a reducer in a file or class is taken, or a class is no valid
                reducer.
        """
        self.reducers: dict[str, type[Reducer]] = {}
        self.broken: list[BrokenPlugin] = []
        self._sources: dict[str, str] = {}
        self._from_files: set[str] = set()
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        # Built-in reducers first, so that their names are taken.
        installed = entry_points(group=GROUP) if entries is None else entries
        for entry in sorted(installed, key=lambda e: (_distribution(e) != "lrbench", _distribution(e), e.name)):
            self._add(_source_of(entry), entry.name, entry.load)
        for file in _plugin_files(files):
            self._add(str(file), file.stem.replace("_", "-"), partial(_load_file, file), required=True)
        for reducer in classes:
            self._take_class(reducer)

    @classmethod
    def load(cls, files: Iterable[Path | str] = (), classes: Iterable[type[Reducer]] = ()) -> Registry:
        """The installed plugins, those in `files`, and `classes`; see the constructor."""
        return cls(files, classes)

    def get(self, name: str) -> type[Reducer]:
        """The reducer called `name`.

        Raises:
            PluginError: there is none; names its broken plugin, or the nearest name.
        """
        if name in self.reducers:
            return self.reducers[name]
        for broken in self.broken:
            if name in broken.names:
                raise PluginError(f"reducer {name!r} cannot be used: {broken.source}: {broken.error}")
        hint = did_you_mean(name, self.reducers) or f"; known: {', '.join(sorted(self.reducers)) or 'none'}"
        suspects = "".join(f"; {broken.source} is broken: {broken.error}" for broken in self.broken)
        raise PluginError(f"unknown reducer {name!r}{hint}{suspects}")

    def source(self, name: str) -> str:
        """The source of a reducer: its file, or its distribution and module."""
        self.get(name)
        return self._sources[name]

    def is_file(self, name: str) -> bool:
        """Whether a reducer comes from a plugin file rather than an installed distribution."""
        self.get(name)
        return name in self._from_files

    def build(self, name: str, params: Mapping[str, Any] | None = None) -> Reducer:
        """A reducer with the parameters `params`, and defaults for the others.

        Raises:
            PluginError: no such reducer.
            ParameterError: (a PluginError) an unknown parameter or a wrong value; its `parameter` names it.
        """
        from lrbench.reducers import parameters

        return parameters.build(self.get(name), params or {})

    def parameters(self, name: str) -> list[Parameter]:
        """(name, type, default, doc) of each parameter of a reducer."""
        from lrbench.reducers import parameters

        return parameters.describe(self.get(name))

    def source_hash(self, name: str) -> str:
        """SHA-256 of the code that defines a reducer's result; see `lrbench.reducers.source_hash`."""
        return source_hash(self.get(name))

    def _add(self, source: str, name: str, load: Callable[[], Any], *, required: bool = False) -> None:
        """Loads a plugin and registers its reducers; errors are recorded in `broken`.

        Raises:
            PluginError: the plugin is `required`, that is, a named file, and the name of its reducer is taken.
        """
        try:
            plugin = load()
            if self._manager.register(plugin, source) is None:
                return
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise PluginError("no lrbench_reducers() marked with @lrbench.hookimpl")
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            offered = self._manager.subset_hook_caller("lrbench_reducers", others)()
            if not all(isinstance(classes, list | tuple) for classes in offered):
                raise PluginError("lrbench_reducers() must return a list of classes")
        except FOREIGN as error:
            if self._manager.has_plugin(source):
                self._manager.unregister(name=source)
            self.broken.append(BrokenPlugin(source, _explain(error), (name,)))
            return
        for classes in offered:
            for reducer in classes:
                self._take(reducer, source, name, required)

    def _take_class(self, reducer: type[Reducer]) -> None:
        """Registers a class outside plugins. Raises PluginError: it is no valid reducer, or its name is taken."""
        source = f"{reducer.__module__}.{reducer.__qualname__}"
        if self.reducers.get(reducer.name) is reducer:
            return
        problem = _problem(reducer)
        if problem is None and reducer.name in self.reducers:
            problem = f"the reducer name {reducer.name!r} is taken by {self._sources[reducer.name]}; choose another"
        if problem is not None:
            raise PluginError(f"{source}: {problem}")
        self.reducers[reducer.name], self._sources[reducer.name] = reducer, source

    def _take(self, reducer: Any, source: str, plugin: str, required: bool) -> None:
        try:
            problem = _problem(reducer)
        except FOREIGN as error:  # inspecting a class may run its code
            problem = one_line(error)
        name = getattr(reducer, "name", None)
        if problem is None and name in self.reducers:
            problem = f"the reducer name {name!r} is taken by {self._sources[name]}"
            if required:
                raise PluginError(f"{source}: {problem}")
            self.broken.append(BrokenPlugin(source, problem))
        elif problem is not None:
            names = {plugin, name} if isinstance(name, str) and name else {plugin}
            self.broken.append(BrokenPlugin(source, problem, tuple(sorted(names))))
        else:
            self.reducers[name], self._sources[name] = reducer, source  # type: ignore[index]
            if required:
                self._from_files.add(name)  # type: ignore[arg-type]


def _problem(reducer: Any) -> str | None:
    """Why an object that a plugin returned is no valid reducer; None if it is."""
    from lrbench.reducers import parameters
    from lrbench.reducers.base import NAME, PROMISES, STATISTICS, Reducer

    if isinstance(reducer, Reducer):
        return f"lrbench_reducers() must return classes; write {type(reducer).__name__} without parentheses"
    if not (isinstance(reducer, type) and issubclass(reducer, Reducer)):
        return f"lrbench_reducers() returned {reducer!r}, which is not a subclass of lrbench.Reducer"
    if not reducer.name:
        return f"{reducer.__name__} has no name"
    if not isinstance(reducer.name, str) or not NAME.fullmatch(reducer.name):
        return f"{reducer.__name__}: the name {reducer.name!r} is not lower-case words joined by hyphens"
    if reducer.reduce is Reducer.reduce and reducer.prepare is Reducer.prepare:
        return f"{reducer.name}: overrides neither reduce nor prepare"
    for field, value, known in (("needs", reducer.needs, STATISTICS), ("promises", reducer.promises, PROMISES)):
        if isinstance(value, str) or not all(word in known for word in value):
            return f"{reducer.name}: {field} = {value!r}; it is a set of: {', '.join(sorted(known))}"
    problem = parameters.problems(reducer)
    return f"{reducer.name}: {problem}" if problem else None


def _plugin_files(paths: Iterable[Path | str]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            modules = [f for f in sorted(path.glob("*.py")) if not f.name.startswith(("_", "test_", "conftest"))]
            if not modules:
                raise PluginError(f"{path}: no plugin files (*.py) in this folder")
        elif path.is_file():
            modules = [path]
        else:
            raise PluginError(f"{path}: no such plugin file")
        for file in modules:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _load_file(path: Path) -> ModuleType:
    """Executes a plugin file as a module with a unique name.

    Without the bytecode cache, which misses edits that keep the file's size within a second.
    """
    name = f"lrbench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or not hasattr(spec.loader, "source_to_code"):
        raise PluginError("not a Python file (*.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and get_type_hints look the module up by name
    try:
        exec(spec.loader.source_to_code(path.read_bytes(), str(path)), module.__dict__)  # type: ignore[union-attr]
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _explain(error: BaseException) -> str:
    """The error in one line, with the last line number of a plugin file in its traceback."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return " ".join(f"it calls sys.exit({code})".split())
    text = one_line(error)
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("lrbench_plugin_"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{text} (line {line})" if line and not isinstance(error, SyntaxError) else text


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else ""


def _source_of(entry: EntryPoint) -> str:
    if entry.dist is None or entry.dist.name == "lrbench":
        return entry.value
    return f"{entry.dist.name} {entry.dist.version}: {entry.value}"
