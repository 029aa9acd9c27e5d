#!/usr/bin/env bash
# Check the models with Spin: each must hold as it is, and fail with each ordering taken out.
set -euo pipefail
cd "$(dirname "$0")"
command -v spin >/dev/null || { echo "the models need Spin (Debian's package: spin)" >&2; exit 1; }
here=$PWD
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cd "$out"

verify() { # model, flags... ; prints pan's summary
    local model=$1
    shift
    rm -f ./*.trail pan*
    spin -a "$@" "$here/$model.pml" >/dev/null
    ${CC:-gcc} -O2 -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 pan.c -o pan -w
    ./pan -m1000000 2>&1 || true # it exits 1 where it finds an error, which its summary tells
}

holds() {
    local summary
    summary=$(verify "$@")
    grep -q "errors: 0" <<<"$summary" || { echo "$1: an error where there must be none" >&2; exit 1; }
    ! grep -q "max search depth too small" <<<"$summary" || { echo "$1: the search was cut off" >&2; exit 1; }
    echo "-- $* holds: $(grep -o '[0-9.e+]* states, stored' <<<"$summary")"
}

fails() {
    local summary
    summary=$(verify "$@")
    grep -qE "errors: [1-9]" <<<"$summary" || { echo "$*: no error where there must be one" >&2; exit 1; }
    echo "-- $* fails, as it must"
}

holds park_wake
for flag in NOFENCE_SLEEPER NOFENCE_SENDER RING_ONCE_EVER; do fails park_wake -D$flag; done
holds newest_wins
for flag in NOFENCE_READER NOFENCE_WRITER NO_RECHECK ONE_SLOT_LESS PINS_PER_SLOT; do fails newest_wins -D$flag; done
echo "models: both hold, and fail without each ordering"
