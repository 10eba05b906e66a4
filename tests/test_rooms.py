"""The order of the rooms: a room imports only those before it, no imports go in a circle, and the hall stays small."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lrbench"
ROOMS = (
    "system linalg stats reducers suite results models tasks evaluation reduction analysis run reports export api cli"
).split()
BELOW = ["lrbench.errors", "lrbench._version"]  # all rooms may import them, and they import no room
ABOVE = ["lrbench", "lrbench.__main__", "lrbench.testing"]  # they may import all rooms, and no room imports them


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def modules_of(package: Path) -> dict[str, str]:
    """Dotted names of a package's modules, and their sources."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports_of(modules: dict[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others: at its top, in functions, and under TYPE_CHECKING."""
    found: dict[str, set[str]] = {}
    for name, source in modules.items():
        asked = set()
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: line {node.lineno}: relative imports hide the room"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                asked |= {part if part in modules else str(node.module) for part in whole}
        found[name] = {other for other in asked if other in modules and other != name}
    return found


def level(module: str) -> int:
    if module in BELOW:
        return -1
    return len(ROOMS) if module in ABOVE else ROOMS.index(module.split(".")[1])


def problems(modules: dict[str, str]) -> list[str]:
    """Modules in the hall that are none of its own, imports upward, and circles, each in one line."""
    strangers = [name for name in modules if name not in BELOW + ABOVE and name.split(".")[1] not in ROOMS]
    if strangers:
        return [f"{name} stands in no room" for name in strangers]
    imports = imports_of(modules)
    found = [
        f"{name} imports {other}, which stands above it"
        for name, others in imports.items()
        for other in sorted(others)
        if level(other) > level(name)
    ]
    return found + circles(imports)


def circles(imports: dict[str, set[str]]) -> list[str]:
    left = {name: set(others) for name, others in imports.items()}
    while True:
        done = {name for name, others in left.items() if not others}
        if not done:
            break
        left = {name: others - done for name, others in left.items() if name not in done}
    # what is left imports a circle or is in one; take away what no other imports
    while True:
        wanted = set().union(*left.values()) if left else set()
        if not left.keys() - wanted:
            break
        left = {name: others & wanted for name, others in left.items() if name in wanted}
    return [f"imports go in a circle among {', '.join(sorted(left))}"] if left else []


def test_a_room_imports_only_the_rooms_before_it_and_nothing_goes_in_a_circle():
    assert problems(modules_of(PACKAGE)) == []


def test_every_room_is_there():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lrbench.linalg.gram", "import lrbench.cli.run"),
        ("lrbench.linalg.gram", "from lrbench.suite import load"),
        ("lrbench.suite.load", "def late():\n    from lrbench.run.runner import run_suite"),
        ("lrbench.stats.paired", "if TYPE_CHECKING:\n    from lrbench.reducers.base import Reducer"),
        ("lrbench.cli.run", "import lrbench"),
        ("lrbench.errors", "from lrbench.system.text import clean"),
        ("lrbench.run.runner", "from lrbench import testing"),
    ],
)
def test_an_import_upward_is_found_wherever_it_stands(module, line):
    modules = modules_of(PACKAGE)
    modules[module] += f"\n{line}\n"
    assert any(problem.startswith(f"{module} imports ") for problem in problems(modules))


def test_a_circle_within_a_room_is_found():
    modules = modules_of(PACKAGE)
    modules["lrbench.stats.totals"] += "\nfrom lrbench.stats.paired import differences\n"
    [problem] = problems(modules)
    assert problem.startswith("imports go in a circle among ")
    assert "lrbench.stats.paired" in problem
    assert "lrbench.stats.totals" in problem


def test_a_module_in_the_hall_that_is_none_of_its_own_is_found():
    assert problems(modules_of(PACKAGE) | {"lrbench.helpers": ""}) == ["lrbench.helpers stands in no room"]


def test_plugins_import_the_public_names_alone():
    for name, source in modules_of(PACKAGE.parent / "plugins").items():
        for node in ast.walk(ast.parse(source)):
            asked = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            asked += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            ours = [module for module in asked if module.split(".")[0] == "lrbench"]
            assert set(ours) <= {"lrbench", "lrbench.linalg"}, name
