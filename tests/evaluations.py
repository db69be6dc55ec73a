"""What MLX is asked to compute: the graph of every evaluation, as the names of its primitives."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from aim_mlx.backend import mx, tree_flatten

_PRIMITIVE = re.compile(r'label ="(\w+)"')


@contextmanager
def watched() -> Iterator[list[set[str]]]:
    """The primitives of each evaluation, in order, as on a GPU; one of nothing new is none.

    Seen are mx.eval, mx.async_eval and arrays that NumPy reads. Compiled functions run as they are
    written, or their primitives would be hidden in one. MLX's fused functions are shown as what a
    CPU makes of them: norms and attention are primitives of their own on a GPU.
    """
    graphs: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in list(sys.modules.values()):
            if module.__name__.startswith("aim_mlx") and hasattr(module, "on_gpu"):
                patch.setattr(module, "on_gpu", lambda: True)
        for owner, name in ((mx, "eval"), (mx, "async_eval"), (np, "array"), (np, "asarray")):
            patch.setattr(owner, name, _watching(getattr(owner, name), graphs))
        mx.disable_compile()
        try:
            yield graphs
        finally:
            mx.enable_compile()


def _watching(evaluate: Any, graphs: list[set[str]]) -> Any:
    def watching(*given: Any, **options: Any) -> Any:
        if primitives := _primitives(given):
            graphs.append(primitives)
        return evaluate(*given, **options)

    return watching


def _primitives(given: Any) -> set[str]:
    """Those that the arrays in a tree wait for."""
    arrays = [each for _, each in tree_flatten(given) if isinstance(each, mx.array)]
    if not arrays:
        return set()
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return set(_PRIMITIVE.findall(graph.getvalue()))
