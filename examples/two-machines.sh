#!/usr/bin/env bash
# Two machines share one model, which only the first one has, and a prompt is answered over both. Here they are two homes on one
# machine, on loopback; on two machines you type the same lines, without --bind.
#
#   examples/two-machines.sh MODEL.gguf [PROMPT]
#
# POTLUCK names the program, SPLIT the layer where the second machine's half begins.
set -euo pipefail
model=${1:?usage: examples/two-machines.sh MODEL.gguf [PROMPT]}
prompt=${2:-What is 2+2?}
split=${SPLIT:-15}
homes=$(mktemp -d)
serving=()

finish() {
  # One that has ended by itself is no failure of ours.
  kill "${serving[@]}" 2>/dev/null || true
  wait "${serving[@]}" 2>/dev/null || true
  rm -rf "$homes"
}
trap finish EXIT

# on MACHINE ARGUMENTS...: what is typed there.
on() { POTLUCK_HOME=$homes/$1 "${POTLUCK:-potluck}" "${@:2}"; }

# lend MACHINE ARGUMENTS...: serves from then on; returns once its layers can be asked for.
lend() {
  mkfifo "$homes/$1.says"
  POTLUCK_HOME=$homes/$1 "${POTLUCK:-potluck}" "${@:2}" --context 512 --threads 1 \
    --bind 127.0.0.1:0 --json >"$homes/$1.says" &
  serving+=($!)
  # The fifo stays open for as long as we live: a peer that cannot write would end.
  exec {says}<"$homes/$1.says"
  until [[ ${ready:-} == *'"layers"'* ]]; do read -r ready <&"$says"; done
  echo "$1 lends $(sed -E 's/.*"layers":\[([0-9]+),([0-9]+)\].*/\1..\2/' <<<"$ready")"
  ready=
}

on first swarm create
lend first serve --model "$model" --layers "0..$split"

# The first machine prints what the second is to type; it says where the first one serves, so it comes after that.
read -r _ join < <(on first swarm invite)
# The second machine takes what nobody serves yet, and gets it from the first.
lend second ${join#potluck }

until [[ $(on second peers --json | grep -o '"layers"' | wc -l) -eq 2 ]]; do sleep 0.1; done
on second run --context 512 --prefer swarm --temperature 0 --max-tokens 24 --route "$prompt"
