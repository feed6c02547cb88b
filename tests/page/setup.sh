#!/bin/sh
# Prepares the browser tests of the status page: a browser with its driver, a virtual environment,
# and axe-core for the accessibility check. Exit code 3 where there is no browser and none can be
# installed here; takes milliseconds when there is nothing to do.
#
#   PAGE_VENV   where to put the environment   (default: target/page-venv of the repository)
#   PYTHON      what to build it with          (default: python3)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=$(dirname -- "$(dirname -- "$here")")/target
venv=${PAGE_VENV:-$target/page-venv}
axe=$target/page-axe
axe_version=4.14.1

say() { echo "page tests: $1" >&2; }
want() { command -v "$1" >/dev/null 2>&1; }

if ! want chromium || ! want chromedriver; then
    if [ "$(id -u)" = 0 ] && want apt-get; then
        say "installing chromium and its driver"
        { apt-get install -y -qq --no-install-recommends chromium chromium-driver ||
            { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }; } >/dev/null 2>&1 || true
    fi
    if ! want chromium || ! want chromedriver; then
        say "skipped: no chromium with chromedriver here, and they could not be installed (that takes root and apt-get)"
        exit 3
    fi
fi

key=$(cat "$here/requirements.txt" "$0" | sha256sum | cut -d' ' -f1)
mkdir -p "$target"
if want flock; then
    exec 9>"$venv.lock"
    flock 9
fi
if [ "$(cat "$venv/.complete" 2>/dev/null)" != "$key" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf -- "$venv"
    "${PYTHON:-python3}" -m venv "$venv" >&2 || {
        say "skipped: no virtual environment with ${PYTHON:-python3} (on Debian: apt-get install python3-venv)"
        exit 3
    }
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --requirement "$here/requirements.txt" >&2
    echo "$key" >"$venv/.complete"
fi

if [ ! -s "$axe/node_modules/axe-core/axe.min.js" ]; then
    if want npm; then
        mkdir -p "$axe"
        npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$axe" "axe-core@$axe_version" >/dev/null 2>&1 ||
            say "note: axe-core could not be fetched; the accessibility check will say that it was skipped"
    else
        say "note: no npm here, so no axe-core; the accessibility check will say that it was skipped"
    fi
fi
