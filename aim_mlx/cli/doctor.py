"""`aim-mlx doctor`: what this machine has, and what to install."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

_PACKAGES = ("aim-mlx", "mlx", "mlx-data", "numpy", "pillow", "safetensors", "huggingface-hub")


def doctor(
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Compare this machine's numbers with the reference's instead."
        ),
    ] = False,
) -> None:
    """Report what this machine runs on.

    Shows the device, BLAS and versions, and what would make it faster. With
    --self-test, small networks run for some seconds and one line says how far
    their numbers are from the reference's: paste it when you report a problem.
    It ends with 1 if they are too far.
    """
    if self_test:
        _test_itself()
        return
    python = platform.python_version()
    print(f"system       {platform.system()} {platform.machine()}, Python {python}")
    for package in _PACKAGES:
        print(f"{package:<12} {_installed(package) or 'missing'}")
    from aim_mlx import backend  # reports a missing back end in one line

    device = backend.device_name()
    print(f"device       {device}, in {backend.FAST_DTYPES[device]} unless --dtype names another")
    print(f"float32      {_float32(backend.TF32)}")
    print(f"BLAS         {_blas(backend.BLAS, backend.on_gpu())}")
    print(f"HEIF photos  {_heif()}")


def _test_itself() -> None:
    from safetensors.numpy import load_file

    from aim_mlx import self_test

    differences = self_test.run(load_file(self_test.EXPECTED))
    print(self_test.line(differences))
    if not all(each.passed for each in differences):
        raise typer.Exit(1)


def _blas(blas, on_gpu: bool) -> str:
    from aim_mlx.openblas import INSTALL, LIBRARY

    if blas.state == "loaded":
        return f"OpenBLAS, kernels for {blas.core}, {blas.threads} threads"
    if blas.state == "not needed" or on_gpu:
        return "not needed on this device"
    if blas.state == "missing":
        return f"{LIBRARY} is missing, so matrices multiply 17 to 35 times slower: {INSTALL}"
    return "OpenBLAS was not loaded, because mlx was imported first: import aim_mlx before mlx"


def _float32(tf32: bool) -> str:
    if tf32:
        return "products round to 11 bits on M5 and CUDA: unset MLX_ENABLE_TF32 to avoid it"
    return "full precision on every device (MLX_ENABLE_TF32=0)"


def _heif() -> str:
    if _installed("pillow-heif"):
        return "pillow-heif"
    if platform.system() == "Darwin":
        return "decoded by macOS"
    return "not installed: pip install 'aim-mlx[heif]'"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
