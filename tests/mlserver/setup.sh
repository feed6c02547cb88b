#!/bin/sh
# Creates the virtual environment of the tests against the real MLServer, or builds it anew when
# requirements.txt has changed. Prints its path; takes milliseconds when there is nothing to do.
#
#   MLSERVER_VENV   where to put it   (default: target/mlserver-venv of the repository)
#   PYTHON          what to build it with (default: the first Python 3.11 or 3.12 found)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=${MLSERVER_VENV:-$(dirname -- "$(dirname -- "$here")")/target/mlserver-venv}
requirements=$here/requirements.txt
stamp=$venv/.complete

die() {
    echo "setup.sh: $1" >&2
    exit 1
}

# MLServer 1.7.1 wants a Python below 3.13, some of the pinned versions one from 3.11 on.
usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or 3.12 that runs"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or 3.12 on the PATH (MLServer 1.7.1 needs one; set PYTHON to choose)"
}

key=$(sha256sum <"$requirements" | cut -d' ' -f1)
mkdir -p "$(dirname -- "$venv")"

# Two builds at once would build into each other; the second waits and then finds nothing to do.
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
fi

# A Python that was removed or replaced takes the environment with it.
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && usable "$venv/bin/python"; then
    echo "$venv"
    exit 0
fi

python=$(find_python)
echo "setup.sh: building $venv (about 80 seconds, 550 MB)" >&2
rm -rf -- "$venv"
"$python" -m venv "$venv" >&2 ||
    die "cannot create a virtual environment with $python (on Debian: apt-get install python3-venv)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --only-binary :all: --requirement "$requirements" >&2 ||
    die "pip could not install requirements.txt: is the Python package index reachable (proxy, PIP_INDEX_URL)?"
"$venv/bin/python" -m pip check >&2 || die "the pinned versions contradict each other, see above"

# Last, so that an interrupted build is started again and not taken for a complete one.
echo "$key" >"$stamp"
echo "$venv"
