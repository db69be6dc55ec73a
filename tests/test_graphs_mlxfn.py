"""A .mlxfn as programs without Python read it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlx
import numpy as np
import pytest

from aim_mlx.backend import mx
from aim_mlx.graphs import mlxfn
from aim_mlx.graphs.graph import Graph
from tests.small import encoder

PROGRAM = Path(__file__).parent / "import_function.cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The program in C++, compiled with the headers that MLX's wheel brings."""
    wheel = next(path for path in map(Path, mlx.__path__) if (path / "include").is_dir())
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    made, library = tmp_path_factory.mktemp("program") / "import_function", wheel / "lib"
    link = [f"-L{library}", "-lmlx", f"-Wl,-rpath,{library}"]
    command = ["g++", "-std=c++20", f"-I{wheel / 'include'}", str(PROGRAM), "-o", str(made)]
    subprocess.run([*command, *link], check=True)
    return made


def test_a_program_in_cpp_gets_the_encoders_embedding_for_each_batch_size(program, tmp_path):
    graph, path = Graph(encoder(), dtype="float32", batches=(1, 3)), tmp_path / "a.mlxfn"
    mlxfn.write(graph, path)
    for batch in graph.batches:
        x = graph.sample(batch)
        shape = map(str, x.shape[:3])
        done = subprocess.run([program, path, *shape], input=x.tobytes(), capture_output=True)
        assert done.returncode == 0, done.stderr
        vectors = np.frombuffer(done.stdout, np.float32).reshape(batch, 64)
        apart = abs(vectors - graph.encoder.embed(list(x))).max()
        assert apart < 1e-5  # 2e-7 measured, with MLX's own BLAS against OpenBLAS


def test_another_batch_size_is_refused_by_the_reader(tmp_path):
    mlxfn.write(Graph(encoder()), tmp_path / "a.mlxfn")
    read: Any = mx.import_function(str(tmp_path / "a.mlxfn"))
    with pytest.raises(ValueError, match="No imported function found"):
        read(mx.zeros((2, 56, 56, 3), mx.uint8))
