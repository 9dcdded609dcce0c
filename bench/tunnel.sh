#!/usr/bin/env bash
# Measures `potluck tunnel` against the path without it, in turns, and writes bench/results/tunnel.json. As root it also measures on a wire of
# 100 Mbit/s between two network namespaces. Arguments: how many MiB a round carries on loopback [256], and rounds [5].
set -euo pipefail
cd "$(dirname "$0")/.."
mib="${1:-256}" rounds="${2:-5}"
target="${CARGO_TARGET_DIR:-target}/debug"
potluck="$target/potluck" bench="$target/examples/tunnel_bench"
work="$(mktemp -d)"
pids=() spaces=()
end() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  for space in "${spaces[@]}"; do ip netns del "$space" 2>/dev/null || true; done
  rm -rf "$work"
}
trap end EXIT

field() { python3 -c 'import json,sys; value = json.loads(sys.stdin.readline())
for key in sys.argv[1].split("."): value = value[int(key) if key.isdigit() else key]
print(value)' "$1"; }

# One service and one tunnel to it: where the peer is, how to run something at the peer, how at the client; what measures.
measure() {
  local name="$1" at="$2" there="$3" here="$4" mib="$5"
  local owner="$work/$name/owner" member="$work/$name/member"
  mkdir -p "$owner" "$member"
  export POTLUCK_NO_MDNS=1
  $there "$bench" service "$at:7101" >/dev/null & pids+=($!)
  POTLUCK_HOME="$owner" $there "$potluck" swarm create --json >"$work/$name/created"
  POTLUCK_HOME="$owner" $there "$potluck" tunnel --expose "$at:7101" --bind "$at:7575" --json >"$work/$name/peer" & pids+=($!)
  until [ -s "$work/$name/peer" ]; do sleep 0.1; done
  POTLUCK_HOME="$owner" $there "$potluck" swarm invite --address "$at:7575" --json >"$work/$name/invited"
  POTLUCK_HOME="$member" $here "$potluck" swarm join "$(field invitation <"$work/$name/invited")" --json >/dev/null
  POTLUCK_HOME="$member" $here "$potluck" tunnel --to "$(field id <"$work/$name/peer")" --port "$at:7101" --listen 127.0.0.1:7102 --json >"$work/$name/here" & pids+=($!)
  until [ -s "$work/$name/here" ]; do sleep 0.1; done
  $here "$bench" measure "$at:7101" 127.0.0.1:7102 "$mib" "$rounds" >"$work/$name.json"
}

echo "tunnel: loopback, three processes beside the service" >&2
measure loopback 127.0.0.1 "" "" "$mib"
echo null >"$work/wire.json"
if [ "$(id -u)" -eq 0 ] && ip netns add potbench0 2>/dev/null; then
  spaces=(potbench0 potbench1)
  ip netns add potbench1
  ip -n potbench0 link add wire type veth peer name wire netns potbench1
  for n in 0 1; do
    ip -n potbench$n link set lo up
    ip -n potbench$n addr add 10.79.0.$((n + 1))/24 dev wire
    ip -n potbench$n link set wire up
    ip netns exec potbench$n tc qdisc add dev wire root tbf rate 100mbit burst 256k latency 50ms
  done
  echo "tunnel: a wire of 100 Mbit/s" >&2
  measure wire 10.79.0.1 "ip netns exec potbench0" "ip netns exec potbench1" $((mib / 8 + 8))
else
  echo "tunnel: SKIPPED: a wire of 100 Mbit/s takes root and ip netns" >&2
fi
python3 - "$(cat "$work/loopback.json")" "$(cat "$work/wire.json")" "$(git rev-parse --short HEAD)" "$(nproc)" "$(cut -d' ' -f1 /proc/loadavg)" <<'END' | tee bench/results/tunnel.json
import json, sys
loopback, wire, commit, cores, load = sys.argv[1:]
print(json.dumps({
    "what": "one connection through `potluck tunnel` against the same service without it, A B A B, medians; ratio is tunnel / raw",
    "command": "bench/tunnel.sh",
    "loopback": json.loads(loopback),
    "wire_100mbit": json.loads(wire),
    "cores": int(cores),
    "load_at_end": float(load),
    "commit": commit,
}, indent=2))
END
