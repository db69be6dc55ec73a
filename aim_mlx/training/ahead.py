"""The batches of a training, each prepared in a thread while the step before it is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make` gives for steps 0 to `steps` - 1, which are asked for in order or again."""

    def __init__(self, make: Callable[[int], T], steps: int):
        self._make, self._steps = make, steps
        self._next: tuple[int, Future[T]] | None = None
        self._pool = ThreadPoolExecutor(1)

    def batch(self, step: int) -> T:
        """This step's; the next one is prepared meanwhile."""
        ready = self._next
        future = ready[1] if ready and ready[0] == step else None
        batch = self._make(step) if future is None else future.result()
        if step + 1 < self._steps:
            self._next = step + 1, self._pool.submit(self._make, step + 1)
        return batch

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)
