"""Calls that fail while the server dies: across a fall-back to a second one, and across a restart.

A steady load of small calls over both protocols, on connections that are kept as the agent keeps
them, through each subject in turn. The server is killed; in the fall-back a second one, on another
address, is there all the time and each subject is configured with both, as far as it can be; in the
restart the one server is started again after two seconds. What nothing in the path could have
answered, the calls while no server was there, is counted apart.
"""

import http.client
import threading
import time
from dataclasses import dataclass

import load
from shim_only import EchoAt
from subjects import until

PATIENCE = 5
PACE = 0.01
WORKERS = 2
BEFORE, GONE, AFTER = 1.0, 2.0, 4.0
HOSTS = ("127.0.0.1", "127.0.0.2")


@dataclass
class Call:
    """When it began and ended, and how."""

    begun: float
    ended: float
    error: str


class Http:
    """One kept connection; one that had ended while it was idle is replaced, as every client does."""

    def __init__(self, port):
        self.port, self.connection = port, None
        self.body = b'{"inputs": []}'

    def __call__(self, again=False):
        fresh = self.connection is None
        if fresh:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            self.connection.request("POST", "/v2/models/iris/infer", self.body)
            response = self.connection.getresponse()
            response.read()
            return "" if response.status == 200 else str(response.status)
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            return repr(error) if fresh or again else self(again=True)

    def close(self):
        if self.connection:
            self.connection.close()


class Grpc:
    """One channel; its messages are bytes."""

    def __init__(self, port):
        import grpc

        self.error = grpc.RpcError
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self.infer = self.channel.unary_unary(load.INFER)
        self.body = load.infer_body(65)[5:]

    def __call__(self):
        try:
            self.infer(self.body, timeout=PATIENCE)
            return ""
        except self.error as error:
            return error.code().name

    def close(self):
        self.channel.close()


def steady(subject, events, seconds):
    """All calls of `seconds`, during which `events` happen: a list of (when, what)."""
    calls = {"http": [], "grpc": []}
    end = time.monotonic() + seconds

    def work(kind, caller):
        at = time.monotonic()
        while at < end:
            begun = time.monotonic()
            error = caller()
            calls[kind].append(Call(begun, time.monotonic(), error))
            # A call that took long is not made up for: a person's client would not either.
            at = max(at + PACE, time.monotonic())
            time.sleep(max(0.0, at - time.monotonic()))
        caller.close()

    threads = [
        threading.Thread(target=work, args=(kind, make(port)))
        for kind, make, port in (("http", Http, subject.http), ("grpc", Grpc, subject.grpc))
        for _ in range(WORKERS)
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    happened = []
    for when, what in events:
        time.sleep(max(0.0, begun + when - time.monotonic()))
        what()
        happened.append(time.monotonic())
    for thread in threads:
        thread.join()
    return calls, happened


def counts(calls, dead, up):
    """What became of the calls; `up` is when a server was there again."""
    failed = [c for c in calls if c.error]
    after = [c for c in failed if c.begun >= up]
    how = {}
    for call in failed:
        how[call.error] = how.get(call.error, 0) + 1
    return {
        "calls": len(calls),
        "failed": len(failed),
        "failed_while_a_server_was_there": len(after),
        # From the moment a server was there (again) to the end of the last failure.
        "last_failure_ms": max((c.ended - up for c in after), default=0.0) * 1000,
        "slowest_ms": max((c.ended - c.begun for c in calls if c.ended >= dead), default=0.0) * 1000,
        "how": how,
    }


def both(subject, args):
    """The two experiments for one subject."""
    found = {}
    # The subjects know one port on two hosts.
    with EchoAt(args.echo) as first:
        with EchoAt(args.echo, HOSTS[1], first.http, first.grpc):
            subject.hosts = HOSTS
            subject.start(first.http, first.grpc)
            try:
                calls, (dead,) = steady(subject, [(BEFORE, first.stop)], BEFORE + AFTER)
            finally:
                subject.stop()
                subject.hosts = HOSTS[:1]
    found["fallback"] = {kind: counts(some, dead, dead) for kind, some in calls.items()}
    with EchoAt(args.echo) as only:

        def again():
            only.start()
            until("the echo server", only.up)

        subject.start(only.http, only.grpc)
        try:
            events = [(BEFORE, only.stop), (BEFORE + GONE, again)]
            calls, (dead, up) = steady(subject, events, BEFORE + GONE + AFTER)
        finally:
            subject.stop()
    found["restart"] = {kind: counts(some, dead, up) for kind, some in calls.items()}
    return found


def table(found):
    print(f"\n{'outage':<10} {'subject':<11} {'protocol':<8} {'calls':>6} {'failed':>6} "
          f"{'with a server there':>19} {'last ms':>8} {'slowest ms':>10}  how")  # fmt: skip
    for what in ("fallback", "restart"):
        for subject, both in found.items():
            for kind, c in both[what].items():
                how = ", ".join(f"{n} x {e[:40]}" for e, n in sorted(c["how"].items()))
                print(f"{what:<10} {subject:<11} {kind:<8} {c['calls']:>6} {c['failed']:>6} "
                      f"{c['failed_while_a_server_was_there']:>19} {c['last_failure_ms']:>8.0f} "
                      f"{c['slowest_ms']:>10.0f}  {how}")  # fmt: skip
