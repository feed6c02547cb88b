"""Resident and peak memory of each subject: at rest, with 1,000 connections, while 16 MB pass."""

import resource
import time

import connections
import load

CONNECTIONS = 1000


def of(subject, echo, large):
    """Megabytes of one subject, each state in a process of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3 * CONNECTIONS:
        # Inherited by the subject, too: it needs two for each caller.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    found = {}
    subject.start(echo.http, echo.grpc)
    try:
        time.sleep(1)
        found["idle_mb"], found["idle_peak_mb"] = (n / 1e6 for n in subject.memory())
        with connections.opened(subject.grpc, CONNECTIONS):
            found["connections_mb"], found["connections_peak_mb"] = (
                n / 1e6 for n in subject.memory()
            )
    finally:
        subject.stop()
    subject.start(echo.http, echo.grpc)
    try:
        before, _ = subject.memory()
        load.run(subject.grpc, load.INFER, large, calls=4)
        load.run(subject.http, "/v2/models/iris/infer", large, http1=True, calls=4)
        resident, peak = subject.memory()
    finally:
        subject.stop()
    found["bodies_16m_mb"], found["bodies_16m_peak_mb"] = resident / 1e6, peak / 1e6
    found["bodies_16m_growth_mb"] = (peak - before) / 1e6
    return found


def table(found):
    print(f"\n{'memory, MB':<12} {'idle':>7} {'peak':>7} {'1,000 connections':>18} {'peak':>7} "
          f"{'16 MB bodies':>13} {'peak':>7}")  # fmt: skip
    for subject, f in found.items():
        print(f"{subject:<12} {f['idle_mb']:>7.1f} {f['idle_peak_mb']:>7.1f} "
              f"{f['connections_mb']:>18.1f} {f['connections_peak_mb']:>7.1f} "
              f"{f['bodies_16m_mb']:>13.1f} {f['bodies_16m_peak_mb']:>7.1f}")  # fmt: skip
