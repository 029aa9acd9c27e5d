"""What docs/datasets.md shows is what runs."""

import re
import subprocess
import sys

from tests.meta.source import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "datasets.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_blocks_run_one_after_the_other() -> None:
    blocks = [block for block in BLOCKS if "from lerobot" not in block]
    assert len(blocks) == len(BLOCKS) - 1 > 5
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
