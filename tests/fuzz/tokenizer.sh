#!/bin/sh
# Builds the tokenizer's fuzz targets with clang-19 (ASan, UBSan) and runs each
# for SECONDS (10). usage: tests/fuzz/tokenizer.sh [SECONDS] [BUILD_FOLDER]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
seconds=${1:-10}
build=${2:-$root/build/fuzz-tokenizer}
mkdir -p "$build"
cd "$root"
flags="-std=c++20 -O1 -g -I. -DFMT_HEADER_ONLY=1 -Wno-unknown-pragmas
  -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
objects=
for source in tokenizer/*.cpp support/*.cpp; do
  object=$build/$(echo "$source" | tr / _).o
  objects="$objects $object"
  [ "$object" -nt "$source" ] || echo "$source $object"
done | xargs -r -n 2 -P "$(nproc)" sh -c '
  clang++-19 '"$(echo $flags)"' -c "$0" -o "$1"'
for source in tokenizer/*.cpp support/*.cpp; do
  objects="$objects $build/$(echo "$source" | tr / _).o"
done
for target in readers encode train; do
  clang++-19 $flags -fsanitize=fuzzer "tests/fuzz/tokenizer_$target.cpp" \
    $objects -lpcre2-8 -lutf8proc -lxxhash -lpthread -o "$build/$target"
  corpus=$build/corpus_$target
  mkdir -p "$corpus"
  cp tests/tokenizer/golden/* "$corpus"
  "$build/$target" -max_total_time="$seconds" -max_len=4096 -timeout=20 \
    -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1 "$corpus" \
    2>"$build/$target.log" || { cat "$build/$target.log"; exit 1; }
  echo "fuzz $target: $(grep -o 'number_of_executed_units: [0-9]*' \
    "$build/$target.log")"
done
