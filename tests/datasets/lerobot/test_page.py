"""What docs/datasets.md shows of LeRobot is what runs."""

import subprocess
import sys

from tests.datasets.test_page import BLOCKS
from tests.meta.source import ROOT


def test_the_blocks_of_lerobot_run() -> None:
    blocks = [BLOCKS[0], *(block for block in BLOCKS if "lerobot" in block)]
    assert len(blocks) == 3
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
