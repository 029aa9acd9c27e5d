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


def test_the_first_block_is_the_example_and_runs() -> None:
    example = ROOT / "examples" / "shared_replay.py"
    assert BLOCKS[0] == example.read_text(encoding="utf-8")
    done = run(str(example))
    assert (done.returncode, done.stderr) == (0, "")
    counted = re.fullmatch(r"(\d+) batches from 10000 transitions of 2 actors\n", done.stdout)
    assert counted is not None, done.stdout
    assert int(counted[1]) >= 1


def test_the_other_blocks_run_one_after_the_other() -> None:
    assert len(BLOCKS) > 5
    done = run("-c", "\n".join(BLOCKS[1:]))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_pictures_are_as_they_are_drawn_and_each_is_shown(tmp_path: Path) -> None:
    assert run(str(PICTURES / "draw.py"), str(tmp_path)).returncode == 0
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert {path.name: path.read_text(encoding="utf-8") for path in PICTURES.glob("*.svg")} == drawn
    assert set(re.findall(r"\]\(pictures/([a-z]+\.svg)\)", PAGE)) == set(drawn)
