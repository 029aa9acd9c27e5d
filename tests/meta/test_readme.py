"""What the pages show is what runs."""

import re
import tomllib

from tests.meta.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_blocks_are_the_quickstart() -> None:
    """`tests/examples/test_quickstart.py` runs that example."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    folder = ROOT / "examples" / "quickstart"
    assert blocks[:2] == [(folder / name).read_text(encoding="utf-8") for name in ("policy.py", "__main__.py")]


def test_links_lead_somewhere() -> None:
    folders = ("", "benchmarks/", "docs/**/", "examples/**/", "transports/")
    for page in (page for folder in folders for page in ROOT.glob(f"{folder}*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_make_verbs_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(
        re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]*`|^```.*?^```", README, re.DOTALL | re.MULTILINE)))
    )
    assert verbs >= {"demo", "test"}
    assert [verb for verb in verbs if not re.search(rf"^{verb}:", makefile, re.MULTILINE)] == []


def test_one_version() -> None:
    import edgeml_ipc

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert edgeml_ipc.__version__ == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_architecture_stays_a_page() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) < 200
