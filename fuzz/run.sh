#!/usr/bin/env bash
# Runs fuzz targets one after the other: run.sh TARGET|all SECONDS. What is found new goes to
# target/fuzz-corpus, what breaks a property to target/fuzz-artifacts; fuzz/corpus stays as it is.
set -eu
cd "$(dirname "$0")/.."
target=${1:-all} seconds=${2:-20}
export PATH="$PWD/target/tools/bin:$PATH"

missing=0
if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    echo "make fuzz needs the nightly compiler: rustup toolchain install nightly" >&2
    missing=1
fi
if ! command -v cargo-fuzz >/dev/null; then
    echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz --locked --root target/tools" >&2
    missing=1
fi
if [ $missing = 1 ]; then
    echo "the same properties run on the stable compiler: cargo test --test it fuzz_replay" >&2
    exit 1
fi

if [ "$target" = all ]; then
    targets=$(ls fuzz/corpus)
elif [ -d "fuzz/corpus/$target" ]; then
    targets=$target
else
    echo "there is no target $target, only:" $(ls fuzz/corpus) >&2
    exit 1
fi
cargo +nightly fuzz build --target-dir target/fuzz ${target/#all/}

broken=""
for one in $targets; do
    found=target/fuzz-corpus/$one kept=target/fuzz-artifacts/$one/ log=target/fuzz-$one.log
    mkdir -p "$found" "$kept"
    # Memory in proportion to the input: no single allocation of a size that a few bytes could ask
    # for, and no growth.
    if ! ASAN_OPTIONS=detect_leaks=0 cargo +nightly fuzz run --target-dir target/fuzz "$one" "$found" "fuzz/corpus/$one" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=64 \
        -artifact_prefix="$kept" -print_final_stats=1 >"$log" 2>&1; then
        broken="$broken $one"
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
    echo "$one: ${runs:-?} inputs, ${edges:-?} edges, ${seconds} s: $log"
done
if [ -n "$broken" ]; then
    echo "a property is broken in:$broken (inputs in target/fuzz-artifacts)" >&2
    exit 1
fi
