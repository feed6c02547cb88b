#!/usr/bin/env bash
# Fetches what some tests use and a bare machine lacks. A test whose tool cannot be had says that
# it was skipped; nothing here is needed to build or run.
set -eu
want() { command -v "$1" >/dev/null 2>&1; }

if ! want promtool; then
  if [ "$(id -u)" = 0 ] && want apt-get; then
    # Only promtool is wanted, so the package is unpacked and its service never installed.
    dir=target/tools/prometheus
    if [ ! -x "$dir/usr/bin/promtool" ]; then
      mkdir -p "$dir"
      (cd "$dir" && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb) \
        || echo "note: promtool is not here and could not be fetched; the test that uses it will say that it was skipped"
    fi
  else
    echo "note: promtool is not here; the test that uses it will say that it was skipped"
  fi
fi

# Packets dropped, a clock that jumps: what the tests of the operating system's faults take.
wanted=()
want ip || wanted+=(iproute2)
want iptables || wanted+=(iptables)
compgen -G '/usr/lib*/*/faketime/libfaketimeMT.so.1' >/dev/null || compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null \
  || wanted+=(libfaketime)
if [ "${#wanted[@]}" -gt 0 ]; then
  install=(apt-get install -y -qq --no-install-recommends "${wanted[@]}")
  { [ "$(id -u)" = 0 ] && want apt-get && { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; }; } >/dev/null 2>&1 \
    || echo "note: ${wanted[*]} not here and not to be installed; the tests that use them will say what they did not check"
fi
