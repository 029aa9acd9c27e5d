#!/usr/bin/env bash
# The C halves of the replay buffer and of the codec under AddressSanitizer and UBSan: built aside from a copy of what git tracks, and run through its tests.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$root/.venv/bin/python}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 cp --parents -t "$copy")
cd "$copy"
EDGEML_IPC_SANITIZE=address "$python" setup.py --quiet build_ext --inplace
libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
LD_PRELOAD=$libraries ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$copy "$python" -m pytest -q \
    tests/data/test_storage.py tests/data/test_windows.py tests/data/test_frames.py tests/data/test_gather.py \
    tests/data/test_priority.py tests/data/test_replay_buffer.py \
    tests/test_codec_fast.py tests/test_codec_rows.py tests/test_codec_hostile.py
echo "the C halves of the replay buffer and of the codec: nothing found by AddressSanitizer and UBSan"
