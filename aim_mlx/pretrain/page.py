"""report.html of a pre-training: curves, predicted patches beside their targets, captions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aim_mlx.backend import mx
from aim_mlx.files import disk_errors, publish
from aim_mlx.pretrain.data import PretrainingData
from aim_mlx.pretrain.generate import captions, predicted_patches
from aim_mlx.pretrain.losses import prefix_mask
from aim_mlx.pretrain.pretrained import as_image
from aim_mlx.pretrain.trainer import PretrainTrainer
from aim_mlx.report.charts import STYLE as CHARTS
from aim_mlx.report.charts import Curve, curves
from aim_mlx.report.page import END, begin, inlined, shown

_SHOWN = 8  # pictures
_CURVES = {
    "Loss": ("loss", "val_loss"),
    "Pixels": ("pixel_loss", "val_pixel_loss"),
    "Captions": ("text_loss", "val_text_loss"),
    "Learning rate": ("rate",),
    "Labelled images, accuracy": ("knn", "linear"),
}
_STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line) }
figure h2 { margin-top: 0 }
figure img { display: inline-block; width: 48%; margin-right: 1%; image-rendering: pixelated }
"""


def write_page(target: Path, title: str, trainer: PretrainTrainer) -> None:
    """Publishes the page of a training as it is now; raises OutputError."""
    text = "".join(_page(title, trainer)).encode()
    with disk_errors("write", target):
        publish({target: text})


def _page(title: str, trainer: PretrainTrainer) -> Iterator[str]:
    yield begin(title, CHARTS + _STYLE)
    yield f"<header><h1>{shown(title)}</h1>"
    yield f"<p>Step {trainer.step:,} of {trainer.steps:,}.</p></header>\n<div class='plots'>"
    for name, keys in _CURVES.items():
        lines = [_curve(trainer, key) for key in keys]
        if chart := curves(lines, name, "accuracy" in name, f"records, of {trainer.steps:,} steps"):
            yield f"<figure><h2>{shown(name)}</h2>{chart}<p>{shown(_last(lines))}</p></figure>\n"
    yield "</div>\n"
    data = trainer.validation or trainer.train
    yield "<h2>Predicted patches</h2><p>On the left the picture, on the right the same with each "
    yield "patch below its first rows as predicted from those before it, at the picture's own "
    yield "brightness and contrast. Below, its caption and, in bold, the one that was written.</p>"
    yield '<div class="pairs">\n'
    yield from _pictures(trainer, data, data.sample(_SHOWN))
    yield f"</div>\n{END}"


def _curve(trainer: PretrainTrainer, key: str) -> Curve:
    values, last = [], None
    for record in trainer.history:
        last = record.get(key, last)  # what is measured seldom stays as it was
        values.append(last)
    return Curve(key.replace("_", " "), values, best=not key.startswith("val_"))


def _last(lines: list[Curve]) -> str:
    named = [(line.name, line.values[-1]) for line in lines if line.values]
    return ", ".join(f"{name} {value:.4g}" for name, value in named if value is not None)


def _pictures(trainer: PretrainTrainer, data: PretrainingData, rows: np.ndarray) -> Iterator[str]:
    """Each picture beside its prediction, with its own caption and the written one."""
    side = int(data.patches**0.5)
    prefix = max(1, side // 4) * side
    batch = data.fixed(rows, np.full(len(rows), prefix))
    pixels, model = mx.array(batch.pixels), trainer.model
    image, _ = model(pixels, prefix_mask(mx.array(batch.prefix), data.patches))
    predictions = np.array(model.decoder.pixel_head(image))
    written = [""] * len(rows)
    if data.tokenizer is not None:
        tokens = captions(model, pixels, model.config.decoder.context_length)
        written = [data.tokenizer.decode(row) for row in tokens]
    for row in range(len(rows)):
        both = [batch.pixels[row], predicted_patches(predictions[row], batch.pixels[row], prefix)]
        yield "<figure>"
        for each in both:
            yield f'<img alt="" src="{inlined(as_image(each, data.preprocessing))}">'
        if data.tokenizer is not None and batch.ids is not None:
            own = data.tokenizer.decode(batch.ids[row, : batch.lengths[row]])
            yield f"<p>{shown(own) or 'no caption'}</p><p><b>{shown(written[row])}</b></p>"
        yield "</figure>\n"
