"""The extras of pyproject.toml: every one that a text or the Makefile asks for exists, under a name that every pip finds."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.meta.source import ROOT

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ASKING = [
    ROOT / "Makefile",
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(path for folder in ("edgeml_ipc", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))),
]


def asked_for(path: Path) -> set[str]:
    """Return the extras that are named in square brackets after `edgeml_ipc`, `'.` or `EXTRAS_x :=`."""
    lists = re.findall(r"(?:edgeml[-_]ipc|'\.)\[([a-z][\w,-]*)\]|^EXTRAS_\w+ := (.+)$", path.read_text(), flags=re.MULTILINE)
    return {extra for pair in lists for names in pair for extra in names.split(",") if extra}


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_an_extra_has_its_normal_form(extra: str) -> None:
    """Older releases of pip only warn of `a_b`, and install nothing, where a wheel's metadata says `a-b` (PEP 685)."""
    assert extra == re.sub(r"[-_.]+", "-", extra).lower()


def test_extras_are_asked_for() -> None:
    assert {"dev", "rl", "dm-env", "lerobot"} <= asked_for(ROOT / "Makefile")


@pytest.mark.parametrize("path", ASKING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_extra_that_is_asked_for_exists(path: Path) -> None:
    assert asked_for(path) <= set(EXTRAS)
