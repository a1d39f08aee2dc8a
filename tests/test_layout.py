"""The shape of the package: what is public, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import longmem

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"longmem": "longmem", "longmem.stores": "stores", "longmem.adapters": "adapters"}
PUBLIC = [
    "AsyncReplyStream",
    "ChatFormatError",
    "ConfigError",
    "CorruptDataError",
    "DivergedError",
    "Engine",
    "FingerprintMismatchError",
    "InputError",
    "LongMemError",
    "MemoryConfig",
    "Recalled",
    "Recollection",
    "Reply",
    "ReplyStream",
    "Sampling",
    "Session",
    "SessionClosedError",
    "SessionError",
    "SessionInUseError",
    "SessionNotFoundError",
    "SessionPool",
    "SessionStats",
    "StaleWriterError",
    "Store",
    "StoreError",
    "StoreFormatError",
    "StoreFullError",
    "StoreLockedError",
    "StoreReadOnlyError",
    "SystemChangedError",
    "Timings",
    "Turn",
    "TurnTooLargeError",
    "UnsupportedModelError",
    "Usage",
]
ABOVE_ENGINE = {
    f"longmem.{name}"
    for name in [
        "session",
        "session_pool",
        "conversation",
        "turn_input",
        "reply_stream",
        "async_reply",
        "opening",
        "rebuild",
        "ledger",
        "history",
        "recall",
        "decoding",
        "timeline",
        "residents",
        "recollecting",
        "keeping",
        "forking",
        "forgetting",
        "exchanges",
        "boundary",
    ]
}


@dataclass(frozen=True)
class Import:
    """One import of a longmem module; `function` is the one it stands in, "" at the top."""

    module: str
    target: str
    function: str


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages, by the name it is imported under."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def imports_of(module: str, node: ast.AST, function: str = "") -> Iterator[Import]:
    """Imports at run time: those for type checkers alone are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        inside = child.name if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
            names = {f"{child.module}.{alias.name}" for alias in child.names} & MODULES.keys()
            for target in names or {child.module}:
                yield Import(module, target, inside)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, inside)
        yield from imports_of(module, child, inside)


def within(module: str, *packages: str) -> bool:
    """Whether a module is one of these, or lies in one of them."""
    return any(module == p or module.startswith(f"{p}.") for p in packages)


MODULES = dict(sources())
IMPORTS = [
    each
    for module, path in MODULES.items()
    for each in imports_of(module, ast.parse(path.read_text("utf-8")))
    if within(each.target, "longmem")
]


def test_the_public_names_are_these() -> None:
    assert sorted(longmem.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(longmem, name).__name__ == name


def test_the_package_list_is_that_of_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(listed["packages"]) == sorted(found)
    assert listed["package-dir"] == {k: v for k, v in FOLDERS.items() if k != v}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("longmem.ops", ()),
        ("longmem.codec", ()),
        ("longmem.retrieval", ("longmem.errors",)),
        ("longmem.recycling", ("longmem.config", "longmem.errors", "longmem.memory")),
        (
            "longmem.memory",
            (
                "longmem.ops",
                "longmem.retrieval",
                "longmem.codec",
                "longmem.config",
                "longmem.errors",
            ),
        ),
        (
            "longmem.stores",
            ("longmem.errors", "longmem.store", "longmem.types", "longmem.chat.turn_text"),
        ),
    ],
)
def test_a_package_imports_only_what_lies_below_it(package: str, allowed: tuple[str, ...]) -> None:
    wrong = [
        each
        for each in IMPORTS
        if within(each.module, package) and not within(each.target, package, *allowed)
    ]
    assert wrong == []


def test_the_engine_knows_no_session_but_in_its_factory() -> None:
    reached, todo = set(), {"longmem.engine"}
    while todo:
        reached |= todo
        todo = {i.target for i in IMPORTS if i.module in todo and not i.function} - reached
    assert reached & ABOVE_ENGINE == set()
    local = {(i.function, i.target) for i in IMPORTS if i.module == "longmem.engine" and i.function}
    assert local <= {("session", "longmem.session"), ("nano", "longmem.nano")}


def test_stores_and_adapters_never_see_each_other() -> None:
    pairs = {(FOLDERS.get(_top(i.module)), FOLDERS.get(_top(i.target))) for i in IMPORTS}
    assert pairs & {("stores", "adapters"), ("adapters", "stores")} == set()


def test_longmem_imports_stores_and_adapters_only_in_functions_of_cli_and_bench() -> None:
    wrong = [
        each
        for each in IMPORTS
        if _top(each.module) == "longmem"
        and _top(each.target) != "longmem"
        and not (each.function and within(each.module, "longmem.cli", "longmem.bench"))
    ]
    assert wrong == []


def test_the_folders_are_never_imported_by_their_own_names() -> None:
    for path in [*MODULES.values(), *(ROOT / "tests").glob("*.py"), *ROOT.glob("examples/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not within(node.module, "stores", "adapters"), path


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {name: path.read_text("utf-8").count("\n") for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_importing_longmem_or_its_command_loads_no_torch() -> None:
    code = "import sys, longmem, longmem.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def _top(module: str) -> str:
    """The package a module belongs to."""
    return next((p for p in ("longmem.stores", "longmem.adapters") if within(module, p)), "longmem")
