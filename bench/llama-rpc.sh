#!/usr/bin/env bash
# Builds llama.cpp's own `llama-bench`, `ggml-rpc-server`, `llama-server` and `llama-quantize` (some 10 minutes on two cores),
# once, out of the source package of llama-cpp-python. Prints the folder that holds them. They go to bench/work, or to
# $POTLUCK_BENCH_WORK.
set -euo pipefail

version=0.3.36
work="${POTLUCK_BENCH_WORK:-$(cd "$(dirname "$0")" && pwd)/work}"
bin="$work/build-$version/bin"

programs=(ggml-rpc-server llama-bench llama-server llama-quantize)
missing=()
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] || missing+=("$program")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "$bin"
  exit
fi

mkdir -p "$work"
if ! ls "$work"/llama_cpp_python-$version.tar.gz >/dev/null 2>&1; then
  echo "llama-rpc: fetching the source package, 77 MB" >&2
  python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$work" llama-cpp-python==$version >&2
fi
# What was built of the same source stays, where only some of the programs are missing.
if [ ! -f "$work/build-$version/CMakeCache.txt" ]; then
  rm -rf "$work/src-$version"
  mkdir "$work/src-$version"
  tar xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work/src-$version" --strip-components=1
fi
echo "llama-rpc: building ${missing[*]}" >&2
cmake -S "$work/src-$version/vendor/llama.cpp" -B "$work/build-$version" -DCMAKE_BUILD_TYPE=Release \
  -DGGML_RPC=ON -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$work/build.log" 2>&1
# Virtual machines announce AMX and then do not let a program use it, which it dies of.
if grep -qw amx_tile /proc/cpuinfo 2>/dev/null; then
  sed -i 's/-march=native/& -mno-amx-tile -mno-amx-int8 -mno-amx-bf16/' \
    "$work/build-$version/ggml/src/CMakeFiles/ggml-cpu.dir/flags.make"
fi
cmake --build "$work/build-$version" --parallel "${POTLUCK_BENCH_JOBS:-$(nproc)}" \
  --target "${missing[@]}" >>"$work/build.log" 2>&1
echo "$bin"
