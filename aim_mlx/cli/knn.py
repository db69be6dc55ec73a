"""`aim-mlx knn`: how well an encoder tells classes apart with nothing trained."""

from typing import Annotated, Any

import typer

from aim_mlx.cli.options import (
    Adapter,
    AsJson,
    EncoderModel,
    MeanLayers,
    Offline,
    Pooling,
    Revision,
    model_named,
    numbers,
    takes_data,
)


@takes_data
def knn(
    data: Any,
    model: EncoderModel = None,
    adapter: Adapter = None,
    revision: Revision = None,
    ks: Annotated[
        str, typer.Option("--k", help="Numbers of neighbours; the best on val is taken.")
    ] = "10,20,100,200",
    temperatures: Annotated[
        str,
        typer.Option("--temperature", help="A neighbour votes with exp(cosine / this); likewise."),
    ] = "0.07,0.2",
    pooling: Pooling = None,
    layers: MeanLayers = "",
    seed: Annotated[int, typer.Option(help="Decides the split.")] = 0,
    offline: Offline = False,
    as_json: AsJson = False,
) -> int:
    """Measure how well neighbours tell classes apart.

    Each image is classified by those nearest to it; nothing is trained.

    The neighbours are those of DATA's train. What is best on val is taken for its test.
    """
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.interrupt import gently
    from aim_mlx.cli.reporter import ProbeReporter
    from aim_mlx.encoder.encoder import EmbedOptions
    from aim_mlx.loading import load
    from aim_mlx.probe.knn import nearest_neighbours
    from aim_mlx.training.report import pass_on

    name = model_named(model)
    report = ProbeReporter(as_json)
    with report, gently() as stop:
        found = nearest_neighbours(
            data,
            lambda: load(name, revision=revision, adapter=adapter, offline=offline, progress=tqdm),
            EmbedOptions(pooling, numbers("--layers", layers, int) if layers else ()),
            report,
            ks=tuple(dict.fromkeys(numbers("--k", ks, int))),
            temperatures=tuple(dict.fromkeys(numbers("--temperature", temperatures, float))),
            seed=seed,
            stop=stop,
        )
    pass_on(report, found.data.skips, found.data.notes, found.data.warnings)
    if not as_json:
        for (k, temperature), score in found.scores.items():
            best = ", the best" if (k, temperature) == found.best else ""
            print(f"k={k}\ttemperature={temperature:g}\t{score:.2%}\ton val{best}")
    on_val: dict[str, dict[str, float]] = {}
    for (k, temperature), score in found.scores.items():
        on_val.setdefault(str(k), {})[f"{temperature:g}"] = score
    chosen = {"k": found.best[0], "temperature": found.best[1], "val": on_val}
    report.figures(found.measured_on, found.figures, found.exit_code, chosen)
    return found.exit_code
