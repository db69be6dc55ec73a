"""A training in several processes, each of which computes its share of every batch.

They come to the same sums, and so take the same steps. The first of them alone reads and writes the
run's folder and says how far it is. `mlx.launch` starts them, on one machine or on several.
"""

import json
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from aim_mlx.backend import mx, nn, tree_map
from aim_mlx.errors import AimError, UsageError

_RANK = "MLX_RANK"  # which mlx.launch sets for each process
# A machine that has not answered for a minute and a half is out of reach. Seconds until it is
# asked, by both names that systems have, between questions, and their number; and milliseconds
# until what was sent must have arrived, on Linux alone.
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
_PROBES |= {"TCP_USER_TIMEOUT": 90_000}


class ProcessGroup:
    """The processes of a training: this one's number `rank`, from 0, and their count `size`.

    Without an MLX group it is this process alone. Each method but `rows` is for all processes to
    call in the same order; it waits for the others, and raises AimError where one has ended.
    """

    def __init__(self, group: mx.distributed.Group | None = None):
        self._group = group
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's share of so many rows; the shares are of nearly one length."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of every process's array, in its dtype; all have the same shape."""
        return values if self.size == 1 else np.array(self._sum(mx.array(values)))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag whether a process has it set."""
        if self.size == 1:
            return flags
        return tuple(bool(count) for count in self.total(np.array(flags, np.int32)))

    def mean(self, tree: Any) -> Any:
        """The mean of every process's arrays; a tree of them, such as a gradient."""
        if self.size == 1:
            return tree
        return self._evaluated(nn.average_gradients(tree, self._group))

    def shared(self, tree: Any) -> Any:
        """The first process's arrays, in all; the others give arrays of the same shapes."""
        if self.size == 1:
            return tree
        sums = tree_map(lambda value: self._sum(value if self.is_first else value * 0), tree)
        return tree if self.is_first else sums

    def shared_values(self, values: Any) -> Any:
        """The first process's values, which JSON must have, in all processes."""
        if self.size == 1:
            return values
        text = json.dumps(values).encode() if self.is_first else b""
        length = int(self.total(np.array(len(text), np.int32)))
        text = np.frombuffer(text.ljust(length, b"\0"), np.uint8)
        return json.loads(self.total(text).tobytes())

    def check_same(self, about: Mapping[str, Any]) -> None:
        """Raises UsageError, in all processes, where one was given something else."""
        about = json.loads(json.dumps(about))
        first = self.shared_values(about)
        names = list(first)
        different = self.any(*(about.get(name) != first[name] for name in names))
        if any(different):
            name = names[different.index(True)]
            raise UsageError(
                f"the processes of this run differ in their {name}: start all with the same "
                "command, on the same files"
            )

    def _sum(self, value: mx.array) -> mx.array:
        return self._evaluated(mx.distributed.all_sum(value, group=self._group))

    def _evaluated(self, tree: Any) -> Any:
        try:
            mx.eval(tree)
        except RuntimeError as error:
            raise AimError(
                f"another process of this run ended or is out of reach ({error}): the last "
                "checkpoint is kept, and the same command resumes"
            ) from error
        return tree


ALONE = ProcessGroup()


def joined() -> ProcessGroup:
    """The processes that this one was started with by mlx.launch, once all are there.

    Without it, this process alone. Raises UsageError where they cannot be reached.
    """
    if _RANK not in os.environ:
        return ALONE
    before = _descriptors()
    try:
        group = ProcessGroup(mx.distributed.init(strict=True))
    except RuntimeError as error:
        raise UsageError(
            f"the other processes of this run cannot be reached ({error}): start all of them with "
            "mlx.launch, or train in one without it"
        ) from error
    _keep_alive(_descriptors() - before)
    return group


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/dev/fd")}


def _keep_alive(descriptors: Iterable[int]) -> None:
    """Lets the system look after connections: MLX would wait for ever for a machine without power.

    However long another process is busy, its machine answers.
    """
    for descriptor in descriptors:
        with suppress(OSError):  # what was closed meanwhile, or is no connection by TCP
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    for name, value in _PROBES.items():
                        if hasattr(socket, name):
                            option = getattr(socket, name)
                            connection.setsockopt(socket.IPPROTO_TCP, option, value)
