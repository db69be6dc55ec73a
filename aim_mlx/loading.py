"""A name, a Hub repo, a folder, a file or a store -> an encoder with its preprocessing, ready."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_mlx.backend import check_not_forked, dtype_name, dtype_named, mx
from aim_mlx.config import LiTConfig, TextConfig, VisionConfig, to_dict
from aim_mlx.encoder.adapted import adapted
from aim_mlx.encoder.encoder import Encoder
from aim_mlx.encoder.ovis2 import Ovis2
from aim_mlx.errors import CheckpointError, UsageError
from aim_mlx.models.lit import LiTModel
from aim_mlx.models.vision import VisionEncoder
from aim_mlx.registry import DEFAULT_LIT, find_model
from aim_mlx.store.lists import started_in
from aim_mlx.weights.adapters import read_adapter
from aim_mlx.weights.checkpoint import Checkpoint, open_checkpoint
from aim_mlx.weights.load import load_into, load_visual_tokens
from aim_mlx.words.lit import LiT, as_lit

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.words.tokenizer import Tokenizer


def load(
    model: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    config: VisionConfig | LiTConfig | None = None,
    adapter: str | os.PathLike[str] | None = None,
    packed: bool | None = None,
    visual_tokens: bool = False,
    offline: bool = False,
    progress: type[Any] | None = None,
) -> Encoder:
    """An encoder from a registry name, a Hub repo id, a folder or a .safetensors file.

    A path that exists comes before a name. `dtype` is "float32", whose numbers are the reference's,
    "float16" or "bfloat16"; None is the fast one: float16 on Metal, bfloat16 on CUDA, float32 on a
    CPU. `revision` is a repo's commit, branch or tag, pinned for registry names; `config` gives the
    sizes of a bare weight file; `adapter` is a folder that fine-tuning wrote, whose changes go into
    the weights; `packed` keeps quantised weights as they are stored, in less memory but slower, by
    default only where they would not fit otherwise; `visual_tokens` loads what Ovis2 makes of its
    tower's features for its language model, too; `progress` is a class of bars as tqdm's, for
    downloads.
    LiT checkpoints give a LiT, with the tokenizer beside the weights if there is one: `load_lit`
    says so to an editor. Raises CheckpointError for weights or a tokenizer that cannot be had or
    are not sound and complete, UsageError for an unknown name. Warns with UntrainedModelWarning
    for random weights, with AssumedHeadsWarning where no file states the width of the heads.
    """
    if adapter is None:
        return _load(model, dtype, revision, config, packed, offline, progress, visual_tokens)
    if visual_tokens:
        raise UsageError("a fine-tuned tower has no visual tokens: leave out one of the two")
    if packed:
        raise UsageError("an adapter goes into weights that are not packed: leave out packed=")
    precision = dtype_named(dtype)
    # As it was fine-tuned, unpacked.
    base = _load(model, "float32", revision, config, False, offline, progress)
    return adapted(base, read_adapter(adapter, base.model.config), precision)


def load_lit(
    model: str | os.PathLike[str] = DEFAULT_LIT,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    config: LiTConfig | None = None,
    packed: bool | None = None,
    offline: bool = False,
    progress: type[Any] | None = None,
) -> LiT:
    """A LiT, as `load` gives it; raises UsageError, too, for a model without a text tower."""
    return as_lit(_load(model, dtype, revision, config, packed, offline, progress))


def load_encoder(
    store: "EmbeddingStore", *, offline: bool = False, progress: type[Any] | None = None
) -> Encoder:
    """The very encoder that made the vectors of a store, with its preprocessing, for queries.

    Raises CheckpointError where it cannot be had, or is not the same any more.
    """
    made_by = store.manifest["model"]
    place, adapter = _placed(store, made_by["path"]), made_by.get("adapter")
    try:
        encoder = load(
            place or made_by["model"],
            dtype=store.manifest["dtype"],
            revision=None if place else made_by.get("revision"),
            adapter=adapter and (_placed(store, adapter) or adapter),
            packed=made_by.get("packed"),
            offline=offline,
            progress=progress,
        )
    except UsageError as error:  # what was a folder is now an unknown name
        raise CheckpointError(
            f"the model that made {str(store.folder)!r} is missing from {made_by['path']!r}: "
            "restore it, or embed again"
        ) from error
    _check_encoder(store, encoder)
    return encoder


def _placed(store: "EmbeddingStore", path: str) -> Path | None:
    """Where a path lies now that was given when the store was made; None where it is gone."""
    places = [Path(path), Path(started_in(store.folder)) / path]
    return next((place for place in places if place.exists()), None)


def _check_encoder(store: "EmbeddingStore", encoder: Encoder) -> None:
    """Raises CheckpointError for an encoder that gives other vectors than the store's."""
    here = {
        "weights": encoder.weights_digest,
        "preprocessing": to_dict(encoder.preprocessing),
        "vector length": encoder.dim(store.options),
    }
    there = {**store.manifest, "vector length": store.dim}
    for what, value in here.items():
        if there[what] != value:
            raise CheckpointError(
                f"the {what} of {encoder.identity['model']!r} are not those that made "
                f"{str(store.folder)!r}: restore the model, or embed again"
            )


def _load(
    model: str | os.PathLike[str],
    dtype: str | None,
    revision: str | None,
    config: VisionConfig | LiTConfig | None,
    packed: bool | None,
    offline: bool,
    progress: type[Any] | None,
    visual_tokens: bool = False,
) -> Encoder:
    check_not_forked()
    precision = dtype_named(dtype)
    if config is not None and not isinstance(config, (VisionConfig, LiTConfig)):
        raise UsageError(f"expected config= a VisionConfig or LiTConfig, got {config!r:.80}")
    path = locate(model, revision, offline, progress, visual_tokens)
    checkpoint = open_checkpoint(path, config, visual_tokens)
    encoder = encoder_of(checkpoint, model, precision, packed)
    checkpoint.warn(stacklevel=3)
    return encoder


def locate(
    model: str | os.PathLike[str],
    revision: str | None = None,
    offline: bool = False,
    progress: type[Any] | None = None,
    visual_tokens: bool = False,
) -> Path:
    """The path of a model on disk, downloaded if it is a name or repo id not yet there."""
    if not isinstance(model, (str, os.PathLike)):
        raise UsageError(f"expected a model's name, repo, folder or file, got {model!r:.80}")
    path, text = Path(model), os.fspath(model)
    if not text:
        raise UsageError("expected a model's name, repo, folder or file, got an empty text")
    if os.path.exists(path):  # False, too, for what can be no path
        if revision is not None:
            raise UsageError(f"{text} is on this disk and has no revisions: leave out the revision")
        return path
    from aim_mlx.weights.hub import fetch_model, is_repo_id

    if os.sep in text and not is_repo_id(text):
        raise CheckpointError(f"no file or folder {text!r}: check the path")
    if not is_repo_id(text):
        find_model(text, "model, folder or file")
    return fetch_model(
        text, revision, offline=offline, progress=progress, visual_tokens=visual_tokens
    )


def encoder_of(
    checkpoint: Checkpoint,
    model: str | os.PathLike[str],
    dtype: mx.Dtype,
    packed: bool | None = None,
) -> Encoder:
    """The encoder around the network of a checkpoint, which was asked for as `model`."""
    if isinstance(checkpoint.config, LiTConfig):
        tokenizer = _tokenizer(checkpoint.folder, checkpoint.config.text)
        lit = LiTModel(checkpoint.config)
        packed = load_into(lit, checkpoint, dtype, packed)
        encoder: Encoder = LiT(
            lit.image_encoder, checkpoint.preprocess, lit=lit, tokenizer=tokenizer
        )
    else:
        network = VisionEncoder(checkpoint.config)
        packed = load_into(network, checkpoint, dtype, packed)
        encoder = Encoder(network, checkpoint.preprocess)
        if checkpoint.visual_tokens is not None:
            visual = load_visual_tokens(checkpoint, checkpoint.visual_tokens, dtype)
            encoder = Ovis2(network, checkpoint.preprocess, visual=visual)
    encoder.trained = checkpoint.trained
    loaded = {"dtype": dtype_name(dtype), "packed": packed}
    encoder.identity = {"model": os.fspath(model), **identity_of(checkpoint), **loaded}
    # Building the layers drew random numbers that were never computed; undone, they would pile up
    # in the generator's state with each model loaded.
    mx.eval(mx.random.state)
    return encoder


def _tokenizer(folder: Path, config: TextConfig) -> "Tokenizer | None":
    """The tokenizer of a folder; None without one, or without the package that runs it."""
    try:
        from aim_mlx.words.tokenizer import Tokenizer
    except ImportError:  # images need none, and LiT.tokenize says what words need
        return None
    return Tokenizer.load(folder, config)


def identity_of(checkpoint: Checkpoint) -> dict[str, object]:
    """What records say of the weights: where, in which layout, stored how, with what history."""
    return {
        "path": str(checkpoint.path),  # of a downloaded one, it ends with the commit
        "layout": checkpoint.layout,
        "stored_dtype": checkpoint.dtype,
        "quantization": asdict(checkpoint.quantization) if checkpoint.quantization else None,
        "trained": checkpoint.trained,
        "provenance": checkpoint.provenance,
    }
