"""coremltools without PyTorch and scikit-learn, which it imports where they are, for seconds."""

import logging
import sys

import pytest

_HEAVY = ("executorch", "scipy", "sklearn", "tensorflow", "torch", "torchao", "torchaudio")
_HEAVY += ("torchvision", "transformers", "xgboost")

_hidden = [name for name in _HEAVY if name not in sys.modules]
sys.modules |= dict.fromkeys(_hidden)  # pyright: ignore
logging.getLogger("coremltools").setLevel(logging.CRITICAL)
try:
    coremltools = pytest.importorskip("coremltools", reason="extra 'coreml' is not installed")
finally:
    logging.getLogger("coremltools").setLevel(logging.NOTSET)
    for _name in _hidden:
        del sys.modules[_name]
