#!/usr/bin/env bash
# Builds the fuzz targets of AREA (tokenizer, data or checkpoints) with clang-19
# (ASan, UBSan) and runs each for SECONDS: 10 from a fixed seed, or with
# MOEC_TEST_LONG=1 twenty minutes from a new one.
# usage: tests/fuzz/run.sh AREA [SECONDS] [BUILD_FOLDER]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
area=$1
case $area in
  tokenizer)
    targets="readers encode train"
    sources="tokenizer/*.cpp support/*.cpp"
    libraries="-lfmt -lpcre2-8 -lutf8proc -lxxhash -lpthread"
    seeds="tests/tokenizer/golden/*"
    ;;
  data)
    targets="npy jsonl"
    sources="runtime/npy.cpp runtime/jsonl.cpp support/*.cpp"
    libraries="-lfmt -lxxhash -lpthread"
    seeds="tests/fuzz/seeds/*"
    ;;
  checkpoints)
    targets="safetensors index hf_config hf_carried"
    sources="runtime/safetensors.cpp models/moe/config.cpp
      models/moe/config_fields.cpp models/moe/config_print.cpp
      models/moe/hf_carried.cpp models/moe/hf_config.cpp
      models/moe/hf_config_write.cpp models/moe/hf_families.cpp support/*.cpp"
    libraries="-lfmt -lxxhash -lpthread"
    seeds="tests/models/golden/hf/mixtral/*"
    ;;
esac
long=10
seed=1
[ "${MOEC_TEST_LONG:-}" != 1 ] || { long=1200; seed=0; }
seconds=${2:-$long}
build=${3:-$root/build/fuzz-$area}
count=$(echo "$targets" | wc -w)
if ! command -v clang++-19 >/dev/null; then
  echo "skipped: clang++-19 is not installed"
  echo "moec-test: 0 passed, 0 failed, $count skipped"
  exit 0
fi
mkdir -p "$build"
cd "$root"
compiler=clang++-19
! command -v ccache >/dev/null || compiler="ccache $compiler"
flags="-std=c++20 -O1 -gline-tables-only -I. -DFMT_SHARED -Wno-unknown-pragmas
  -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
# An object is as new as its source and every header.
# shellcheck disable=SC2012
headers=$(ls -t tokenizer/*.h tokenizer/*.inc ./*/*.h models/moe/*.h |
  head -n 1)
objects=
todo=
for source in $sources; do
  object=$build/$(echo "$source" | tr / _).o
  objects="$objects $object"
  if [ "$source" -nt "$object" ] || [ "$headers" -nt "$object" ]; then
    todo="$todo $source $object"
  fi
done
# shellcheck disable=SC2016,SC2086
printf '%s %s\n' $todo | COMPILE="$compiler $flags" \
  xargs -r -n 2 -P "$(nproc)" sh -c '[ -z "$1" ] || $COMPILE -c "$0" -o "$1"'
for target in $targets; do
  # shellcheck disable=SC2086
  clang++-19 $flags -fsanitize=fuzzer "tests/fuzz/${area}_$target.cpp" \
    $objects $libraries -o "$build/$target"
  corpus=$build/corpus_$target
  mkdir -p "$corpus"
  # shellcheck disable=SC2086
  cp $seeds "$corpus"
  "$build/$target" -seed="$seed" -max_total_time="$seconds" -max_len=4096 \
    -timeout=20 -artifact_prefix="$build/" \
    -rss_limit_mb=4096 -verbosity=0 -print_final_stats=1 "$corpus" \
    2>"$build/$target.log" || {
    cat "$build/$target.log"
    echo "moec-test: 0 passed, 1 failed, 0 skipped"
    exit 1
  }
  echo "fuzz $target: $(grep -o 'number_of_executed_units: [0-9]*' \
    "$build/$target.log")"
done
echo "moec-test: $count passed, 0 failed, 0 skipped"
