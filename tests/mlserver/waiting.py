"""Waiting with an end: for a condition, for a call in flight, and for what is seen meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

# How long anything may take that has no reason to take long. Far above what is usual: the tests
# are about behaviour, and a busy machine is not a failure.
PATIENCE = 60.0

T = TypeVar("T")


class Hopeless(Exception):
    """What was waited for cannot come any more."""


def eventually(
    what: str, ask: Callable[[], T], timeout: float = PATIENCE, every: float = 0.05
) -> T:
    """The first truthy answer of `ask`; errors and untrue answers are asked again."""
    until = time.monotonic() + timeout
    while True:
        last: Any = None
        try:
            last = ask()
            if last:
                return last
        except Hopeless:
            raise
        except Exception as error:  # a server that is still starting fails in many ways
            last = error
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:.0f} s: {what}; last: {last!r}")
        time.sleep(every)


class Call(Generic[T]):
    """A call in a thread of its own, so that the test can do something while it is in flight."""

    def __init__(self, work: Callable[[], T]):
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()

        def run() -> None:
            try:
                self._answer = work()
            except BaseException as error:
                self._error = error
            finally:
                self._ended.set()

        # A daemon: a call that hangs fails its test and must not keep the run from ending.
        threading.Thread(target=run, daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def answer(self, timeout: float = PATIENCE) -> T:
        if not self._ended.wait(timeout):
            raise AssertionError(f"the call has no answer after {timeout:.0f} s")
        if self._error is not None:
            raise self._error
        return self._answer

    def error(self, timeout: float = PATIENCE) -> BaseException:
        if not self._ended.wait(timeout):
            raise AssertionError(f"the call has no answer after {timeout:.0f} s")
        assert self._error is not None, f"expected an error, got {self._answer!r}"
        return self._error


class Watch(Generic[T]):
    """Asks the same question again and again while the body of the `with` runs."""

    def __init__(self, ask: Callable[[], T], every: float = 0.1):
        self.answers: list[T | Exception] = []
        self._ask = ask
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            try:
                self.answers.append(self._ask())
            except Exception as error:
                self.answers.append(error)
            if self._stop.wait(self._every):
                return

    def __enter__(self) -> "Watch[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a question of the watch was never answered"

    def distinct(self) -> list[str]:
        assert self.answers, "the watch has seen nothing"
        return sorted({repr(answer) for answer in self.answers})
