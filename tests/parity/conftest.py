"""Parity tests need torch and transformers, and float32 products that are really float32."""

import os
from contextlib import suppress

import pytest

# Read by MLX at its first product: CUDA and recent Apple GPUs would round the inputs to TF32.
os.environ["MLX_ENABLE_TF32"] = "0"


@pytest.fixture(autouse=True, scope="session")
def _reference_is_installed():
    """A parity test that was asked for fails without its reference: a skip would look like a pass.

    The modules import torch inside functions, so that the default run collects without it.
    """
    try:
        import torch

        with pytest.MonkeyPatch.context() as patch:
            # torchvision as PyPI has it finds none of its compiled operators beside a torch for the
            # CPU, and fails as it registers their shapes. What is compared here uses none of them.
            patch.setattr(
                torch.library, "register_fake", lambda *_, **__: lambda function: function
            )
            with suppress(ImportError):  # the tests that compare with it say so themselves
                import timm  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        pytest.fail(f"{error}; install the references with: pip install -e '.[parity,timm]'")
