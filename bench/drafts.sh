#!/usr/bin/env bash
# Makes two draft models of the demo model, once: itself requantised to Q4_0, and with four of its thirty layers left out.
# No smaller sibling of it is in the registries; these two bracket real pairs. Prints their paths, one a line. They go to
# bench/work, or to $POTLUCK_BENCH_WORK.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
work="${POTLUCK_BENCH_WORK:-$here/work}"
model="${POTLUCK_TEST_MODEL:-$HOME/.cache/potluck/models/SmolLM2-135M-Instruct.Q4_1.gguf}"
drafts="$work/drafts"
quantised="$drafts/$(basename "$model" .gguf).draft-Q4_0.gguf"
cut="$drafts/$(basename "$model" .gguf).draft-cut.gguf"
version=0.19.0

mkdir -p "$drafts"
if [ ! -f "$quantised" ]; then
  bin=$("$here/llama-rpc.sh")
  # Pure: the embedding table, which is the output matrix as well, is read for every token, and is requantised like the rest.
  "$bin/llama-quantize" --allow-requantize --pure "$model" "$quantised.part" Q4_0 >"$drafts/quantize.log" 2>&1
  mv "$quantised.part" "$quantised"
fi
if [ ! -f "$cut" ]; then
  if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv" >&2
    "$work/venv/bin/pip" install --quiet "gguf==$version" >&2
  fi
  "$work/venv/bin/python" "$here/wan/cut.py" "$model" "$cut.part" 23 26 >&2
  mv "$cut.part" "$cut"
fi
echo "$quantised"
echo "$cut"
