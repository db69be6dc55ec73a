"""The errors of the package: each kind knows the exit code that the command line ends with."""

import warnings


class AimError(Exception):
    """Base of all errors raised on purpose: what was expected, what came, what to do."""

    exit_code = 1


class UsageError(AimError):
    """An argument that cannot be served: an unknown name, a bad size, a missing path."""

    exit_code = 2


class NotFinite(AimError):
    """A training whose numbers grew beyond all bounds."""


class CheckpointError(AimError):
    """A model, checkpoint or configuration that is rejected before any work is done."""

    exit_code = 4


class OutputError(AimError):
    """A result that could not be written or read back."""

    exit_code = 5


class Interrupted(AimError):
    """The user stopped the run."""

    exit_code = 130


class BackendError(AimError):
    """No usable MLX back end on this machine."""


class ImageError(AimError):
    """One image that cannot be embedded: `reason` is a fixed word, `detail` a sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


UNTRAINED = (
    "the encoder's weights are random: similarities mean little, and training on it shows only "
    "that training works"
)


class UntrainedModelWarning(UserWarning):
    """The weights are random, or those of the image tower that a LiT model was trained on."""


def warn_of_untrained(trained: object, stacklevel: int = 2) -> None:
    """Warns of weights that are not trained, in the same words wherever they are met.

    So that a command, which shows a text once, says it once for the model and a store of its rows.
    """
    if trained is False:
        warnings.warn(UNTRAINED, UntrainedModelWarning, stacklevel=stacklevel + 1)


class AssumedHeadsWarning(UserWarning):
    """No file states how wide the attention heads are: with a wrong guess all vectors are wrong."""


class DarkImageWarning(UserWarning):
    """16-bit images use so little of their range that hardly anything of them is seen."""


class OverflowWarning(UserWarning):
    """Images overflow half precision, and are computed again in float32."""


class TruncatedTextWarning(UserWarning):
    """A text was over the context length: it was cut, and keeps its end token."""
