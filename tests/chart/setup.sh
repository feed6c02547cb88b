#!/bin/sh
# What the tests of chart and image want: a virtual environment, helm, kustomize; with the word `image`, buildah. Takes
# milliseconds when they are there. What cannot be had is said, and the tests that want it say that they were skipped.
#
#   tests/chart/setup.sh [image]
#
#   CHART_VENV   where the environment is put   (default: target/chart-venv of the repository)
#   PYTHON       what to build it with          (default: the first Python from 3.10 on)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$(dirname -- "$here")")
venv=${CHART_VENV:-$root/target/chart-venv}
tools=$root/target/tools/bin
helm_version=v3.21.4
kustomize_version=v5.8.3
requirements=$here/requirements.txt
stamp=$venv/.complete

say() { echo "setup.sh: $1" >&2; }

usable() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 10))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python 3.10 or newer on the PATH (set PYTHON to choose)"
    exit 1
}

# `go install` builds helm from source: four minutes of one core. The version of Kubernetes that it renders for
# is a flag of its own build, which `go install` leaves at 1.20; the tests state theirs.
install_tool() {
    name=$1 package=$2 version=$3
    [ -x "$tools/$name" ] && [ "$(cat "$tools/.$name" 2>/dev/null)" = "$version" ] && return
    if ! command -v go >/dev/null 2>&1; then
        command -v "$name" >/dev/null 2>&1 || say "$name is not here and there is no Go to build it with: its tests will say that they were skipped"
        return
    fi
    say "building $name $version (minutes, once)"
    # A build cache of its own would be half a gigabyte that nobody needs again; Go's own is used.
    if GOBIN=$tools GOFLAGS=-mod=mod go install -ldflags '-s -w' "$package@$version" >/dev/null 2>"$tools/.$name.log"; then
        echo "$version" >"$tools/.$name"
    else
        tail -n 3 "$tools/.$name.log" >&2
        say "$name could not be built: its tests will say that they were skipped"
    fi
}

if [ "${1:-}" = image ] && ! command -v buildah >/dev/null 2>&1; then
    # Its libraries and its policy come with it, so unpacking the package alone would not do.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get install -y -qq --no-install-recommends buildah || { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah; }; } >/dev/null 2>&1 ||
            say "buildah is not here and could not be installed: the final stage of the image is not built"
    else
        say "buildah is not here: the final stage of the image is not built"
    fi
fi

mkdir -p "$tools"
if command -v flock >/dev/null; then
    exec 8>"$venv.lock"
    flock 8
fi
if [ "${1:-}" != image ]; then
    install_tool helm helm.sh/helm/v3/cmd/helm "$helm_version"
    # kubectl has kustomize in it.
    command -v kubectl >/dev/null 2>&1 || install_tool kustomize sigs.k8s.io/kustomize/kustomize/v5 "$kustomize_version"
fi

key=$(sha256sum <"$requirements" | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && usable "$venv/bin/python"; then
    exit 0
fi
python=$(find_python)
say "building $venv (about 20 seconds, 150 MB)"
rm -rf -- "$venv"
"$python" -m venv "$venv" >&2 || {
    say "cannot create a virtual environment with $python (on Debian: apt-get install python3-venv)"
    exit 1
}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --requirement "$requirements" >&2
echo "$key" >"$stamp"
