#!/usr/bin/env bash
# Build and run the C core's tests: plain, ThreadSanitizer, AddressSanitizer + UBSan; then builds with one thing weakened,
# each of which a test must catch. SECONDS_EACH sets how long the timed tests run (default 2).
set -euo pipefail
cd "$(dirname "$0")"
seconds=${SECONDS_EACH:-2}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
CC=${CC:-gcc}
wrap=-Wl,--wrap=eipc_map_create,--wrap=eipc_map_attach

build() { # name, flags...
    local name=$1
    shift
    "$CC" -std=c11 -g -Wall -Wextra -Wshadow -Werror "$@" ../*.c test_core.c "$wrap" -pthread -o "$out/$name"
}

must_pass() { # name, test
    echo "-- $1: $2"
    TSAN_OPTIONS="halt_on_error=1 exitcode=66" ASAN_OPTIONS="detect_leaks=1" "$out/$1" "$2" "$seconds"
}

must_be_caught() { # name, test
    if TSAN_OPTIONS="halt_on_error=1 exitcode=66" "$out/$1" "$2" $((seconds * 10)) >"$out/log" 2>&1; then
        echo "NOT CAUGHT: $1 passed test $2" >&2
        exit 1
    fi
    echo "-- $1: $2 caught it: $(grep -m1 -E 'WARNING|failed' "$out/log")"
}

build plain -O2
build tsan -O1 -fsanitize=thread
build asan -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
for name in plain tsan asan; do must_pass "$name" all; done

build weak_commit -O1 -fsanitize=thread -DEIPC_TEST_WEAKEN_COMMIT
must_be_caught weak_commit stream
build no_recheck -O1 -fsanitize=thread -DEIPC_TEST_NO_RECHECK
must_be_caught no_recheck topic
echo "C core: all tests passed, both weakened builds were caught"
