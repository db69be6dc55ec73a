"""The one thread of the process that does all of MLX's work, call after call, for all Embedders."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from aim_mlx.errors import Interrupted

T = TypeVar("T")
_LAST_INTERVAL = 0.5  # seconds that a thread keeps Python's lock though others want it; else 0.005


@dataclass(eq=False)
class Call:
    """A call that waits or runs: what it has done, and what it will say beside its values."""

    of: object = None
    done: int = 0
    total: int = 0
    cancelled: bool = False
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises Interrupted where the call was cancelled."""
        if self.cancelled:
            raise Interrupted("cancelled")


def calls_of(embedder: object) -> list[Call]:
    """Those that run or wait, in their order."""
    return [call for call in _owner.calls if call.of is embedder]


def do(call: Call, work: Callable[[], T]) -> T:
    """The result of work, which raises nothing; others may run while the caller waits."""
    return _owner.do(call, work)


class _Owner:
    """The thread that does all of MLX's work; it waits, idle, until the process ends.

    It never ends before, so none of the threads that MLX keeps for a thread that used it pile up.
    And as MLX wants Python's lock when such a thread ends, its end could meet the interpreter's,
    which aborts the process: so nothing joins it.
    """

    def __init__(self):
        self.calls: list[Call] = []  # those that run or wait, in their order
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._adding = threading.Lock()
        self._started = False

    def do(self, call: Call, work: Callable[[], T]) -> T:
        answer: Future[T] = Future()

        def finish() -> None:
            result = work()
            self.calls.remove(call)
            answer.set_result(result)

        with self._adding:
            if not self._started:
                threading.Thread(target=self._serve, name="aim_mlx.bridge", daemon=True).start()
                self._started = True
            self.calls.append(call)
            self._work.put(finish)
        try:
            return answer.result()
        except BaseException:  # Ctrl-C in a host that is a Python program
            call.cancelled = True
            raise

    def _serve(self) -> None:
        while True:
            self._work.get()()

    def end(self) -> None:
        """Ends all calls, and leaves the thread in a wait in which it needs Python's lock no more.

        A thread that asks for the lock as the interpreter goes is ended, which aborts the process
        as above. So after the last answer it may keep the lock until it waits.
        """
        if self._started:
            sys.setswitchinterval(_LAST_INTERVAL)
            for call in list(self.calls):
                call.cancelled = True
            self.do(Call(), lambda: None)


def _after_fork() -> None:
    global _owner
    _owner = _Owner()  # the thread of the other stayed in the parent


_owner = _Owner()
atexit.register(lambda: _owner.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
