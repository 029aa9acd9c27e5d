"""The repository's own source, parsed once for the tests of this folder."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edgeml_ipc"


def module_name(path: Path) -> str:
    """Return the dotted name under which a file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def package_modules() -> dict[str, Path]:
    """Return dotted name -> file for every module of the package."""
    modules = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert "edgeml_ipc.errors" in modules, f"no package found at {PACKAGE}"
    return modules


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    """Tell whether `node` is an `if TYPE_CHECKING:` block."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imported_names(path: Path, *, for_types_too: bool) -> list[tuple[int, str]]:
    """List (line, dotted name) of everything that a file imports, function bodies included.

    `from a.b import c` gives `a.b.c` where that is a module of the package, else `a.b`.
    """
    modules = package_modules()
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if is_type_checking(node) and not for_types_too:
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.lineno, full if full in modules else node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return found
