"""Rules that hold for every source file: docstrings, length, and the things that this project does not do."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.meta.source import PACKAGE, ROOT, package_modules, tree_of

MAX_LINES = 400


def sources(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """List the source files below the named folders of the repository."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in found if "__pycache__" not in path.parts]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def documented_methods() -> dict[str, set[str]]:
    """Return class name -> the methods that it documents, over the whole package."""
    table: dict[str, set[str]] = {}
    for path in package_modules().values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                methods = {f.name for f in node.body if isinstance(f, Documented) and ast.get_docstring(f)}
                table.setdefault(node.name, set()).update(methods)
    return table


@cache
def bases_of() -> dict[str, set[str]]:
    """Return class name -> names of its bases, over the whole package."""
    return {
        node.name: {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        for path in package_modules().values()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }


def inherits_docstring(cls: str, method: str) -> bool:
    """Tell whether a base class, at any distance, documents the method that `cls` overrides."""
    bases, documented = bases_of(), documented_methods()
    to_see, seen = set(bases.get(cls, ())), set()
    while to_see:
        base = to_see.pop()
        if method in documented.get(base, ()):
            return True
        seen.add(base)
        to_see |= bases.get(base, set()) - seen
    return False


def undocumented(module: str) -> list[str]:
    """List the public names of a module that have no docstring of their own and inherit none.

    In a module whose name begins with an underscore nothing is public but its purpose: its own docstring.
    """
    missing: list[str] = []
    private = any(part.startswith("_") and part != "__main__" for part in module.split("."))

    def visit(body: list[ast.stmt], prefix: str, cls: str | None) -> None:
        for node in body:
            if not isinstance(node, Documented) or node.name.startswith(("_", "test_")):  # a test's name says it
                continue
            decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
            exempt = decorators & {"setter", "overload"} or (cls is not None and inherits_docstring(cls, node.name))
            if not ast.get_docstring(node) and not exempt:
                missing.append(f"{prefix}{node.name} (line {node.lineno})")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.", node.name)

    tree = tree_of(package_modules()[module])
    if not ast.get_docstring(tree):
        missing.append("the module itself")
    if not private:
        visit(tree.body, "", None)
    return missing


@pytest.mark.parametrize("module", package_modules())
def test_every_public_name_has_a_docstring(module: str) -> None:
    assert undocumented(module) == []


@pytest.mark.parametrize("path", sources("edgeml_ipc", "transports", "benchmarks", suffixes=(".py", ".c", ".h")), ids=named)
def test_a_long_file_says_why(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MAX_LINES:
        head = " ".join(lines[:40])
        assert re.search(rf"\b{MAX_LINES} lines\b.*\bbecause\b", head), (
            f"{named(path)} has {len(lines)} lines: split it, or let its head say 'longer than {MAX_LINES} lines because ...'"
        )


@pytest.mark.parametrize("path", sources("edgeml_ipc"), ids=named)
def test_broad_except_only_around_a_users_callback(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(t is None or ast.unparse(t) in {"Exception", "BaseException"} for t in types)
        cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None  # release, then re-raise as it was
        comment = lines[node.lineno - 1].partition("#")[2]
        assert not broad or cleans_up or "a user's" in comment, (
            f"{named(path)}:{node.lineno}: a broad except is for a user's callback only, and says so in a comment on its line"
        )


FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "unittest"}
FORBIDDEN_CALLS = {
    "time.sleep": "wait for an event, with a deadline",
    "os.mlock": "a locked page cannot be given back",
    "logging.basicConfig": "logging belongs to the program",
    "print": "a library does not print",
    "eval": "never",
    "exec": "never",
}
MAY_PRINT = ("edgeml_ipc/cli/", "edgeml_ipc/demo/")


@pytest.mark.parametrize("path", sources("edgeml_ipc"), ids=named)
def test_things_the_package_does_not_do(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                {a.name.split(".")[0] for a in node.names} if isinstance(node, ast.Import) else {str(node.module).split(".")[0]}
            )
            assert not names & FORBIDDEN_IMPORTS, f"{named(path)}:{node.lineno}: imports {names & FORBIDDEN_IMPORTS}"
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            allowed = call == "print" and named(path).startswith(MAY_PRINT)
            assert call not in FORBIDDEN_CALLS or allowed, f"{named(path)}:{node.lineno}: {call}: {FORBIDDEN_CALLS[call]}"


@pytest.mark.parametrize("path", sources("tests"), ids=named)
def test_things_a_test_does_not_do(path: Path) -> None:
    forbidden = {"time.sleep", "pytest.skip", "pytest.xfail", "pytest.importorskip"}
    marks = {"pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail"}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call | ast.Attribute):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            assert name not in forbidden | marks, f"{named(path)}:{node.lineno}: {name}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "mock" not in ast.unparse(node), f"{named(path)}:{node.lineno}: a mock stands for nothing real"


UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")  # in halves, so that this file passes


@pytest.mark.parametrize(
    "path",
    sources("edgeml_ipc", "transports", "benchmarks", "examples", "tests", suffixes=(".py", ".c", ".h", ".md")),
    ids=named,
)
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [text[: match.start()].count("\n") + 1 for match in UNFINISHED.finditer(text)]
    assert not found, f"{named(path)}: unfinished at lines {found}"


def test_types_travel_with_the_package() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_two_transports_folders_point_to_each_other() -> None:
    assert "edgeml_ipc/transports" in (ROOT / "transports" / "README.md").read_text(encoding="utf-8")
    assert "`transports/`" in (ast.get_docstring(tree_of(PACKAGE / "transports" / "__init__.py")) or "")
