"""MLServer listens somewhere else than expected: the shim finds it, for each protocol."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from callers import accepts, grpc_infer, has_ipv6_loopback, http, infer_body
from processes import MLServer, Shim
from waiting import eventually

NAME_OF_IPV6_LOOPBACK = "ipv6-loopback.test"

needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")


def start(server: MLServer) -> MLServer:
    server.start()
    server.wait_until_up()
    server.load("echo")
    return server


def check_relayed(shim: Shim, *, http_by: str, grpc_by: str) -> None:
    """Both protocols work through the shim, and it says by which address."""

    def selected() -> bool:
        selection = shim.status()["selection"]
        return (_plain(selection["http"]), _plain(selection["grpc"])) == (http_by, grpc_by)

    eventually(f"HTTP goes to {http_by} and gRPC to {grpc_by}", selected)
    eventually("the shim is ready", shim.is_ready)
    assert http(shim.http, "POST", "/v2/models/echo/infer", infer_body("a", 1.0)).status == 200
    assert grpc_infer(shim.grpc, "echo", "b", 2.0).outputs[0].contents.fp32_contents[0] == 2.0


def _plain(host: str | None) -> str:
    return (host or "").strip("[]")


def reachable(server: MLServer, host: str) -> tuple[bool, bool]:
    over_http, over_grpc = server.at(host)
    return accepts(over_http), accepts(over_grpc)


def test_a_server_on_loopback_is_used_there(make_server, start_shim):
    server = start(make_server("echo", host="127.0.0.1"))
    # Without the shim: only this one address works.
    assert reachable(server, "127.0.0.1") == (True, True)
    assert reachable(server, "127.0.0.2") == (False, False)

    shim = start_shim(server, "127.0.0.1,127.0.0.2")
    check_relayed(shim, http_by="127.0.0.1", grpc_by="127.0.0.1")


def test_a_server_on_the_pod_address_only_is_found_behind_a_loopback_that_refuses(
    make_server, start_shim
):
    server = start(make_server("echo", host="127.0.0.2"))
    # Without the shim: whoever dials localhost, as the agent does, is refused.
    assert reachable(server, "127.0.0.1") == (False, False)
    assert reachable(server, "127.0.0.2") == (True, True)

    shim = start_shim(server, "127.0.0.1,127.0.0.2")
    check_relayed(shim, http_by="127.0.0.2", grpc_by="127.0.0.2")

    def loopback() -> set[tuple[str, str]]:
        seen = [shim.endpoint(protocol, "127.0.0.1") for protocol in ("http", "grpc")]
        return {(endpoint["state"], endpoint["reason"]) for endpoint in seen}

    eventually("the shim says why not loopback", lambda: loopback() == {("down", "refused")})

    # And the same with no candidates configured, only what the downward API gives.
    by_default = start_shim(server, hosts="", POD_IP="127.0.0.2")
    check_relayed(by_default, http_by="127.0.0.2", grpc_by="127.0.0.2")


@needs_ipv6
def test_a_server_on_all_of_ipv4_is_used_by_a_different_address_for_each_protocol(
    make_server, start_shim
):
    server = start(make_server("echo", host="0.0.0.0", dial="127.0.0.1"))
    # Without the shim: gRPC listens on both families and HTTP only on one.
    assert reachable(server, "127.0.0.1") == (True, True)
    assert reachable(server, "::1") == (False, True)

    # Which of two addresses answers first is chance; the order decides after the hold time.
    first = start_shim(server, "::1,127.0.0.1", SHIM_FAILBACK_HOLD="1s")
    check_relayed(first, http_by="127.0.0.1", grpc_by="::1")
    second = start_shim(server, "127.0.0.1,::1", SHIM_FAILBACK_HOLD="1s")
    check_relayed(second, http_by="127.0.0.1", grpc_by="127.0.0.1")


@needs_ipv6
def test_a_server_on_ipv6_loopback_is_found(make_server, start_shim, tmp_path):
    # MLServer cannot bind to an address of IPv6 as such, only to a name that stands for one.
    name, wrapper = name_of_ipv6_loopback(tmp_path)
    server = start(make_server("echo", host=name, dial="::1", wrapper=wrapper))
    # Without the shim: whoever dials 127.0.0.1 is refused.
    assert reachable(server, "127.0.0.1") == (False, False)
    assert reachable(server, "::1") == (True, True)

    check_relayed(start_shim(server, "127.0.0.1,::1"), http_by="::1", grpc_by="::1")


def name_of_ipv6_loopback(scratch: Path) -> tuple[str, list[str]]:
    """A name that resolves to ::1 and to nothing else, and what to start the server with.

    Many machines have one in /etc/hosts. Where none has, the server gets an /etc/hosts of its own
    in a private mount namespace, which needs no root where user namespaces are allowed.
    """
    for name in ("ip6-localhost", "ip6-loopback", "localhost6"):
        try:
            if {found[4][0] for found in socket.getaddrinfo(name, None)} == {"::1"}:
                return name, []
        except OSError:
            continue
    if shutil.which("unshare") is None:
        pytest.skip("no name for ::1 in /etc/hosts, and no unshare to give the server one")
    hosts = scratch / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n::1 {NAME_OF_IPV6_LOOPBACK}\n")
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
    wrapper = ["unshare", "--mount", *as_root, "sh", "-c", mounted, str(hosts)]
    tried = subprocess.run(
        [*wrapper, "getent", "ahosts", NAME_OF_IPV6_LOOPBACK], capture_output=True, text=True
    )
    if tried.returncode != 0:
        pytest.skip(
            "no name for ::1 in /etc/hosts, and a private one is not permitted here: "
            + tried.stderr.strip()
        )
    return NAME_OF_IPV6_LOOPBACK, wrapper
