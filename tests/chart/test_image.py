"""The image: the file it is made from, and its final stage, built without a daemon and run.

The final stage is the Dockerfile's own, with a program that is static by another way: there is no musl on most machines
that run this, so `make image` links glibc statically. Everything but the libc is what the image has. A glibc that is
linked statically cannot resolve names, so no test here does.
"""

import http.client
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import tarfile
import tomllib
import uuid

import pytest

from conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
BINARY = ROOT / "target" / "release" / "agent-shim"
LIMIT = 12_000_000


def instructions(text=DOCKERFILE):
    """The instructions as (word, rest), continuation lines joined."""
    lines = "\n".join(l for l in text.splitlines() if not l.lstrip().startswith("#"))
    return [tuple(l.split(None, 1)) for l in re.sub(r"\\\n", " ", lines).splitlines() if l.strip()]


def stages():
    out = []
    for word, rest in instructions():
        if word == "FROM":
            out.append([])
        if out:
            out[-1].append((word, rest))
    return out


def test_each_base_is_pinned_by_version_and_the_last_is_empty():
    bases = [stage[0][1].split()[0] for stage in stages()]
    assert bases[-1] == "scratch"
    for base in bases[:-1]:
        assert re.fullmatch(r"[a-z0-9/.-]+:[0-9]+\.[0-9]+[a-z0-9.-]*", base), f"{base} is not pinned by a version"


def test_the_user_is_a_number_and_not_root():
    (user,) = [rest for word, rest in stages()[-1] if word == "USER"]
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)


def test_the_final_stage_takes_one_file_and_runs_nothing():
    words = [word for word, _ in stages()[-1]]
    assert words.count("COPY") == 1 and not {"RUN", "ADD", "SHELL", "CMD"} & set(words)
    (entry,) = [rest for word, rest in stages()[-1] if word == "ENTRYPOINT"]
    assert json.loads(entry) == ["/usr/local/bin/agent-shim"]


def test_the_build_is_locked_released_and_without_the_demo():
    builds = re.findall(r"cargo build[^&]*", " ".join(rest for _, rest in instructions()))
    assert len(builds) == 2, "one for the dependencies, one for the program"
    for build in builds:
        assert {"--release", "--locked", "--no-default-features"} <= set(build.split())


def test_the_dependencies_are_built_before_the_sources_are_there():
    build = stages()[0]
    first = next(i for i, (word, rest) in enumerate(build) if word == "RUN" and "cargo build" in rest)
    sources = next(i for i, (word, rest) in enumerate(build) if word == "COPY" and rest.startswith("src"))
    assert first < sources


def test_the_toolchain_is_new_enough_and_the_version_is_the_programs():
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    base = re.search(r"FROM rust:(\d+)\.(\d+)", DOCKERFILE)
    wanted = tuple(map(int, cargo["rust-version"].split(".")[:2]))
    assert tuple(map(int, base.groups())) >= wanted
    assert f"ARG VERSION={cargo['version']}" in DOCKERFILE


def test_all_that_is_copied_passes_the_ignore_file():
    let_in = {l[1:] for l in (ROOT / ".dockerignore").read_text().splitlines() if l.startswith("!")}
    for word, rest in stages()[0]:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert source in let_in and (ROOT / source).exists(), source
    # What the sources include is copied, too.
    for source in (ROOT / "src").rglob("*.rs"):
        for inside in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            top = (source.parent / inside).resolve().relative_to(ROOT).parts[0]
            assert top in let_in, f"{source.name} includes {inside}, which is not in the image's build"


# The program.

needs_binary = pytest.mark.skipif(not BINARY.exists(), reason="target/release/agent-shim is not built: make image does")


def interpreter(path):
    """Whether an ELF file asks for a dynamic linker."""
    data = path.read_bytes()
    assert data[:5] == b"\x7fELF\x02", "a 64-bit ELF file"
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return any(struct.unpack_from("<I", data, offset + i * size)[0] == 3 for i in range(count))


@needs_binary
def test_the_program_is_small_enough():
    size = BINARY.stat().st_size
    assert size < LIMIT, f"{size} bytes: the image's program is to be below {LIMIT}"


@needs_binary
def test_the_program_is_static():
    assert not interpreter(BINARY)


@needs_binary
def test_the_demo_is_not_in_it():
    done = subprocess.run([BINARY, "demo"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "demo" in done.stderr


# The final stage.


def why_not():
    if not BINARY.exists():
        return "target/release/agent-shim is not built: make image does"
    if shutil.which("buildah") is None:
        return "buildah is not here (Debian: apt-get install buildah), so the final stage is not built"
    if os.geteuid() != 0:
        return "building and entering the final stage wants root"
    return None


needs_buildah = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """The image as an OCI layout: its configuration, and its file system."""
    here = tmp_path_factory.mktemp("image")
    context = here / "context"
    context.mkdir()
    shutil.copy(BINARY, context / "agent-shim")
    final = DOCKERFILE[DOCKERFILE.rindex("FROM scratch"):]
    final = re.sub(r"(?m)^COPY --from=build \S+", "COPY agent-shim", final)
    assert "--from" not in final
    (context / "Dockerfile").write_text(final)
    tag = f"localhost/agent-shim-test:{uuid.uuid4().hex}"
    buildah = ["buildah", "--root", here / "root", "--runroot", here / "run", "--storage-driver", "vfs"]
    for args in (
        ["build", "--isolation", "chroot", "--build-arg", "REVISION=0123abc", "--tag", tag, context],
        ["push", tag, f"oci:{here / 'oci'}:test"],
    ):
        done = subprocess.run([*buildah, *args], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    blob = lambda d: here / "oci" / "blobs" / d["digest"].replace(":", "/")
    index = json.loads((here / "oci" / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    root = here / "rootfs"
    root.mkdir()
    for layer in manifest["layers"]:
        with tarfile.open(blob(layer)) as tar:
            tar.extractall(root, filter="fully_trusted")
    return config, root


@needs_buildah
def test_the_image_is_configured_as_pods_want_it(layout):
    config, _ = layout
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/agent-shim"]
    assert not config["config"].get("Cmd") and not config["config"].get("Volumes")
    labels = config["config"]["Labels"]
    prefix = "org.opencontainers.image."
    for name, value in {"title": "agent-shim", "licenses": "Apache-2.0", "version": "0.1.0", "revision": "0123abc"}.items():
        assert labels[prefix + name] == value
    assert labels[prefix + "description"]
    assert config["architecture"] == {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@needs_buildah
def test_there_is_one_file_in_it_and_no_shell(layout):
    _, root = layout
    files = [p.relative_to(root) for p in root.rglob("*") if not p.is_dir()]
    assert [str(f) for f in files] == ["usr/local/bin/agent-shim"]
    mode = (root / files[0]).stat().st_mode
    assert mode & 0o111 == 0o111 and not mode & 0o7022, "to be run by everybody and written by nobody else"


def inside(root, *args):
    """The entry point with a root that cannot be written, as user 65532, and nothing else of this machine but /proc."""
    (root / "proc").mkdir(exist_ok=True)
    script = 'mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount -o remount,ro,bind "$0" && r=$0 && exec chroot --userspec=65532:65532 --groups= "$r" /usr/local/bin/agent-shim "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root), *args]


@needs_buildah
def test_it_tells_its_version_in_there(layout):
    done = subprocess.run(inside(layout[1], "--version"), capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]})
    if "Operation not permitted" in done.stderr or "must be superuser" in done.stderr:
        pytest.skip(f"this machine allows no mounts: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "agent-shim 0.1.0\n"), done.stderr


@needs_buildah
def test_it_runs_in_there_as_nobody_on_a_read_only_root_and_ends_when_told(layout):
    ports = {f"SHIM_{n}_PORT": "0" for n in ("ADMIN", "RELAY_HTTP", "RELAY_GRPC", "AGENT")}
    env = {"PATH": os.environ["PATH"], "SHIM_LOG_FORMAT": "json", "SHIM_ADMIN_LISTEN": "127.0.0.1", "SHIM_DRAIN_TIME": "1s", **ports}
    process = subprocess.Popen(inside(layout[1]), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        seen = []
        address = None
        for line in process.stdout:
            seen.append(line)
            if "not permitted" in line or "superuser" in line:
                pytest.skip(f"this machine allows no mounts: {line.strip()}")
            if found := re.search(r"127\.0\.0\.1:(\d+)", line) if "listening" in line else None:
                address = int(found.group(1))
                break
        assert address, "".join(seen)
        connection = http.client.HTTPConnection("127.0.0.1", address, timeout=10)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        status = dict(l.split(":\t", 1) for l in open(f"/proc/{process.pid}/status").read().splitlines() if ":\t" in l)
        assert set(status["Uid"].split()) == {"65532"} and set(status["Gid"].split()) == {"65532"}
        mount = next(l for l in open(f"/proc/{process.pid}/mountinfo") if l.split()[4] == "/")
        assert mount.split()[5].split(",")[0] == "ro"
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
