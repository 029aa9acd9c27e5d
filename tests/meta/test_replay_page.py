"""What docs/replay_buffer.md shows is what runs, and its pictures are what docs/pictures/draw.py draws."""

import re
import subprocess
import sys
from pathlib import Path

from tests.meta.source import ROOT

PAGE = (ROOT / "docs" / "replay_buffer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PICTURES = ROOT / "docs" / "pictures"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_the_first_blocks_are_an_example() -> None:
    """`tests/examples/test_multi_actor_replay.py` runs it."""
    folder = ROOT / "examples" / "multi_actor_replay"
    assert BLOCKS[:2] == [(folder / name).read_text(encoding="utf-8") for name in ("actor.py", "learner.py")]


def test_the_other_blocks_run_one_after_the_other() -> None:
    assert len(BLOCKS) > 5
    done = run("-c", "\n".join(BLOCKS[2:]))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_pictures_are_as_they_are_drawn_and_each_is_shown(tmp_path: Path) -> None:
    assert run(str(PICTURES / "draw.py"), str(tmp_path)).returncode == 0
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert {path.name: path.read_text(encoding="utf-8") for path in PICTURES.glob("*.svg")} == drawn
    assert set(re.findall(r"\]\(pictures/([a-z]+\.svg)\)", PAGE)) == set(drawn)
