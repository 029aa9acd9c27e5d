"""What docs/gym.md shows is what runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.source import ROOT

PAGE = (ROOT / "docs" / "gym.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(3))
def test_each_block_runs_as_a_program(number: int, tmp_path: Path) -> None:
    assert len(BLOCKS) == 3
    program = tmp_path / "block.py"
    program.write_text(BLOCKS[number], encoding="utf-8")
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
