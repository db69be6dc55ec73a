"""An Ovis2 tower with what makes visual tokens of its features."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from aim_mlx.backend import mx
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.models.layers import layer_numbers
from aim_mlx.models.vision import Features
from aim_mlx.models.visual_tokens import VisualTokenizer


@dataclass(eq=False)
class Ovis2(Encoder):
    """An encoder whose features have `visual_tokens`: what Ovis2's language model is given.

    Vectors are those of the tower by itself.
    """

    visual: VisualTokenizer = field(kw_only=True)

    def features(
        self,
        pixels: NDArray[Any] | mx.array,
        layers: Sequence[int] = (),
        interpolate_positions: bool = False,
    ) -> Features:
        layers = layer_numbers(layers)
        features = super().features(pixels, (*layers, -1), interpolate_positions)
        outputs = features.layers
        source = features.tokens if self.visual.config.final_norm else outputs[-1]
        return replace(
            features,
            layers={layer: outputs[layer] for layer in layers},
            visual_tokens=self.visual(source, features.grid),
        )
