#!/bin/sh
# Fuzzes every target for SECONDS_EACH (first argument, 60 unless given); the second argument names one target.
#
# libFuzzer needs a compiler's coverage counters, which a stable rustc can make, and a C++ compiler for itself.
# What is found worth keeping stays in target/fuzz/corpus; `fuzz/run.sh 0` adds the smallest set of it to
# fuzz/corpus, which `make test` replays.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
targets=${2:-edge guard deploys certificates session}
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target the flags are for the broker and its libraries alone, not for build scripts and macros.
RUSTFLAGS="$coverage -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks" \
  cargo build --release --locked --target "$host" --target-dir ../target/fuzz
mkdir -p artifacts
for target in $targets; do
  found=../target/fuzz/corpus/$target
  program=../target/fuzz/$host/release/$target
  mkdir -p "$found"
  echo "== $target"
  if [ "$seconds" = 0 ]; then
    "$program" -merge=1 "corpus/$target" "$found"
  else
    "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
      -artifact_prefix="artifacts/$target-" "$found" "corpus/$target"
  fi
done
