"""Fixtures: MLServer, the shim, and the clean-up that leaves no process behind."""

import os

# Before gRPC is imported, which reads them once: nothing here may leave the machine, so no proxy,
# and no handlers around the forks that start the servers.
for _name in list(os.environ):
    if _name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        del os.environ[_name]
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import report
from processes import REPOSITORY, MLServer, Process, Reaper, Shim

_running: list[Process] = []


def pytest_configure(config: pytest.Config) -> None:
    # A run that is asked to end, as by a CI's time limit, ends as with Ctrl-C: with clean-up.
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    if outcome.failed:
        for process in _running:
            outcome.sections.append((f"end of the log of {process.name}", process.log_tail()))
    return outcome


def pytest_terminal_summary(terminalreporter) -> None:
    if report.lines():
        terminalreporter.section("measured, not asserted")
        for line in report.lines():
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def reaper() -> Iterator[Reaper]:
    reaper = Reaper()
    yield reaper
    reaper.close()


# --- The shim --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def binary() -> Path:
    """The program under test. It is built before, never here: a test run does not compile."""
    path = Path(os.environ.get("AGENT_SHIM_BIN") or REPOSITORY / "target/debug/agent-shim")
    if not os.access(path, os.X_OK):
        pytest.exit(f"no shim at {path}: run `cargo build`, or set AGENT_SHIM_BIN", returncode=2)
    return path.resolve()


@pytest.fixture
def start_shim(reaper: Reaper, binary: Path, tmp_path: Path) -> Iterator[Callable[..., Shim]]:
    """Starts shims in front of a server: `start_shim(server, SHIM_OUTAGE_GRACE="3s")`."""
    started: list[Shim] = []

    def start(server: MLServer, hosts: str | None = None, **env: str) -> Shim:
        home = tmp_path / f"shim-{len(started)}"
        home.mkdir()
        shim = Shim(
            reaper,
            home,
            binary,
            {
                "SHIM_INFERENCE_HOSTS": hosts or server.dial,
                "SHIM_INFERENCE_HTTP_PORT": str(server.http_port),
                "SHIM_INFERENCE_GRPC_PORT": str(server.grpc_port),
            }
            | env,
        )
        started.append(shim)
        _running.append(shim)
        shim.start()
        return shim

    yield start
    for shim in started:
        # A crash that no test looked for is still a failure of the test it happened in.
        crashed = not shim.is_running and shim.exit_code() != 0
        shim.kill()
        _running.remove(shim)
        assert not crashed, f"the shim ended by itself:\n{shim.log_tail()}"


# --- MLServer --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained scikit-learn model in the layout that MLServer loads."""
    home = tmp_path_factory.mktemp("trained") / "iris"
    home.mkdir()
    samples, kinds = load_iris(return_X_y=True)
    joblib.dump(LogisticRegression(max_iter=1000).fit(samples, kinds), home / "model.joblib")
    settings = {
        "name": "iris",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "v0.1.0"},
    }
    (home / "model-settings.json").write_text(json.dumps(settings))
    return home


@pytest.fixture
def make_server(reaper: Reaper, iris: Path, tmp_path: Path) -> Iterator[Callable[..., MLServer]]:
    """MLServers for one test, which may do with them what it likes. They are not yet started."""
    made: list[MLServer] = []

    def make(*models: str, **options) -> MLServer:
        server = _make(reaper, tmp_path / f"mlserver-{len(made)}", iris, models, **options)
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()
        _running.remove(server)


def _make(reaper: Reaper, home: Path, iris: Path, models: tuple[str, ...], **options) -> MLServer:
    home.mkdir()
    server = MLServer(reaper, home, [m for m in models if m != "iris"], **options)
    if "iris" in models:
        (home / "models" / "iris").symlink_to(iris)
    _running.append(server)
    return server


@pytest.fixture(scope="session")
def _shared_server(
    reaper: Reaper, iris: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MLServer]:
    home = tmp_path_factory.mktemp("shared") / "mlserver"
    models = ("iris", "echo", "patient", "headers", "slow_load", "freezing_import")
    server = _make(reaper, home, iris, models)
    yield server
    server.kill()
    _running.remove(server)


@pytest.fixture
def server(_shared_server: MLServer) -> Iterator[MLServer]:
    """The server that most tests share, with `echo` and `patient` loaded and proven to work.

    A test may stop it and load into it. What it leaves broken is replaced for the next one.
    """
    server = _shared_server
    if not _works(server):
        server.kill()
        server.start()
        server.wait_until_up()
        server.load("echo")
        server.load("patient")
        assert server.echoes()
    yield server
    if server.is_running:
        server.thaw()


def _works(server: MLServer) -> bool:
    try:
        return server.is_running and server.echoes()
    except OSError:
        return False
