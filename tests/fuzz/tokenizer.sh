#!/usr/bin/env bash
# Builds the tokenizer's fuzz targets with clang-19 (ASan, UBSan) and runs each
# for SECONDS: 10, or with MOEC_TEST_LONG=1 an hour in all.
# usage: tests/fuzz/tokenizer.sh [SECONDS] [BUILD_FOLDER]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
long=10
[ "${MOEC_TEST_LONG:-}" != 1 ] || long=1200
seconds=${1:-$long}
build=${2:-$root/build/fuzz-tokenizer}
if ! command -v clang++-19 >/dev/null; then
  echo "skipped: clang++-19 is not installed"
  echo "moec-test: 0 passed, 0 failed, 3 skipped"
  exit 0
fi
mkdir -p "$build"
cd "$root"
flags="-std=c++20 -O1 -g -I. -DFMT_HEADER_ONLY=1 -Wno-unknown-pragmas
  -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
# An object is as new as its source and every header.
# shellcheck disable=SC2012
headers=$(ls -t tokenizer/*.h tokenizer/*.inc support/*.h | head -n 1)
objects=
todo=
for source in tokenizer/*.cpp support/*.cpp; do
  object=$build/$(echo "$source" | tr / _).o
  objects="$objects $object"
  if [ "$source" -nt "$object" ] || [ "$headers" -nt "$object" ]; then
    todo="$todo $source $object"
  fi
done
# shellcheck disable=SC2016,SC2086
printf '%s %s\n' $todo | FLAGS=$flags xargs -r -n 2 -P "$(nproc)" \
  sh -c '[ -z "$1" ] || clang++-19 $FLAGS -c "$0" -o "$1"'
for target in readers encode train; do
  # shellcheck disable=SC2086
  clang++-19 $flags -fsanitize=fuzzer "tests/fuzz/tokenizer_$target.cpp" \
    $objects -lpcre2-8 -lutf8proc -lxxhash -lpthread -o "$build/$target"
  corpus=$build/corpus_$target
  mkdir -p "$corpus"
  cp tests/tokenizer/golden/* "$corpus"
  "$build/$target" -max_total_time="$seconds" -max_len=4096 -timeout=20 \
    -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1 "$corpus" \
    2>"$build/$target.log" || {
    cat "$build/$target.log"
    echo "moec-test: 0 passed, 1 failed, 0 skipped"
    exit 1
  }
  echo "fuzz $target: $(grep -o 'number_of_executed_units: [0-9]*' \
    "$build/$target.log")"
done
echo "moec-test: 3 passed, 0 failed, 0 skipped"
