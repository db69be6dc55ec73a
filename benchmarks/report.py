"""From measurements to medians, the Markdown table and the goals."""

from statistics import median
from typing import Any

GB = 1e9


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def summarise(measured: dict[str, Any]) -> dict[str, Any]:
    """Medians with the lowest and highest; ratios are taken round by round."""
    encoder = {dtype: _encoder(rounds) for dtype, rounds in measured["encoder"].items()}
    pipeline = measured["pipeline"]
    alone = [round["encoder"]["images_per_second"] for round in pipeline["rounds"]]
    folder = [round["folder"]["images_per_second"] for round in pipeline["rounds"]]
    decode = [round["decode"]["core_seconds_an_image"] for round in pipeline["rounds"]]
    few, many = measured["memory"]["few"], measured["memory"]["many"]
    weights = measured["checkpoint"]["weights_bytes"]
    return {
        "encoder": encoder,
        "folder_images_per_second": spread(folder),
        "encoder_alone_images_per_second": spread(alone),
        "folder_to_encoder": spread([f / a for f, a in zip(folder, alone, strict=True)]),
        "decode_core_seconds": spread(decode),
        "peak_over_weights_gb": {
            str(each["count"]): (each["peak_bytes"] - weights) / GB for each in (few, many)
        },
        "loading": _loading(measured["loading"]),
        "start_seconds": {
            name: spread(each["seconds"]) for name, each in measured["startup"].items()
        },
    }


def _loading(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    sums = [result["checksum"] for each in rounds for result in each.values()]
    result: dict[str, Any] = {"checksums_differ_by": (max(sums) - min(sums)) / abs(sums[0])}
    for side in ("ours", "theirs"):
        result[side] = {
            "seconds": spread([each[side]["seconds"] for each in rounds]),
            "peak_gb": spread([each[side]["peak_bytes"] / GB for each in rounds]),
        }
    seconds = [each["ours"]["seconds"] / each["theirs"]["seconds"] for each in rounds]
    return result | {"seconds_ratio": spread(seconds)}


def _encoder(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """`rounds` hold images/s as {"ours": {batch: result}, "theirs": {batch: result}}."""
    rates = [
        {
            side: {b: r["images_per_second"] for b, r in results.items()}
            for side, results in each.items()
        }
        for each in rounds
    ]
    sums = [r["checksum"] for each in rounds for results in each.values() for r in results.values()]
    best = [{side: max(by_batch.values()) for side, by_batch in each.items()} for each in rates]
    return {
        side: {b: spread([each[side][b] for each in rates]) for b in rates[0][side]}
        for side in ("ours", "theirs")
    } | {
        "ratio": {
            b: spread([each["ours"][b] / each["theirs"][b] for each in rates])
            for b in rates[0]["theirs"]
        },
        "best": {side: spread([each[side] for each in best]) for side in ("ours", "theirs")},
        "best_ratio": spread([each["ours"] / each["theirs"] for each in best]),
        "checksums_differ_by": max(sums) - min(sums),
    }


def possible(summary: dict[str, Any], machine: dict[str, Any]) -> float:
    """What a folder can reach of the encoder alone, if that keeps the shared cores busy."""
    if machine["on_gpu"]:
        return 1.0
    alone = machine["cores"] / summary["encoder_alone_images_per_second"]["median"]
    return alone / (alone + summary["decode_core_seconds"]["median"])


def goals(
    summary: dict[str, Any], measured: dict[str, Any], machine: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each goal, what was measured, and whether it holds."""
    encoder, start = summary["encoder"]["float32"], summary["start_seconds"]
    seconds = 1 / encoder["best"]["ours"]["median"]
    peaks = list(summary["peak_over_weights_gb"].values())
    imported = {m for each in measured["startup"].values() for m in each["heavy_modules"]}
    unwanted = sorted(imported & {"mlx", "torch", "transformers"})
    ratio, pipeline = encoder["best_ratio"]["median"], summary["folder_to_encoder"]["median"]
    milliseconds = 1e3 * start["import"]["median"]
    difference = encoder["checksums_differ_by"]
    loading = summary["loading"]["ours"]["peak_gb"]["high"]
    loaded = summary["loading"]["checksums_differ_by"]
    share, reach = possible(summary, machine), 0.95 if machine["on_gpu"] else 0.92
    bound = 1.1 * measured["checkpoint"]["weights_bytes"] / GB + 0.3
    rows = [
        ("outputs' checksums, ours and theirs", f"{difference:.0e}", "<= 3e-5", difference <= 3e-5),
        ("weights' sums as loaded, of their size", f"{loaded:.0e}", "<= 1e-6", loaded <= 1e-6),
        ("rate of transformers, best against best", f"{ratio:.2f}", ">= 0.90", ratio >= 0.9),
        ("seconds an image", f"{seconds:.2f}", "<= 1.5", seconds <= 1.5),
        (
            "folder against encoder alone",
            f"{pipeline:.2f} (cores kept busy allow {share:.2f})",
            f">= {reach:.2f}",
            pipeline >= reach,
        ),
        ("import aim_mlx", f"{milliseconds:.0f} ms", "< 50 ms", milliseconds < 50),
        ("aim-mlx --help", _time(start["--help"]), "< 0.4 s", start["--help"]["median"] < 0.4),
        ("mlx, torch imported at the start", ", ".join(unwanted) or "none", "none", not unwanted),
        ("peak memory over the weights", f"{max(peaks):.2f} GB", "<= 1 GB", max(peaks) <= 1),
        ("peak memory of loading", f"{loading:.2f} GB", f"<= {bound:.2f} GB", loading <= bound),
    ]
    names = ("goal", "measured", "wanted", "holds")
    return [dict(zip(names, row, strict=True)) for row in rows]


def markdown(result: dict[str, Any]) -> str:
    machine, summary = result["machine"], result["summary"]
    blas = machine["blas"]
    lines = [
        f"{result['model']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['device']}, BLAS {blas['state']} {blas['kernels']}; medians of "
        f"{result['rounds']} rounds (lowest to highest); {result['date']}",
        "",
        "| what | aim-mlx | transformers | ratio |",
        "|---|---|---|---|",
    ]
    for dtype, each in summary["encoder"].items():
        for batch, rate in each["ours"].items():
            theirs, ratio = each["theirs"].get(batch), each["ratio"].get(batch)
            label = "as embed chooses" if batch == "default" else f"batch {batch}"
            lines.append(_row(f"encoder, {dtype}, {label}, images/s", rate, theirs, ratio))
        best = each["best"]
        label = f"encoder, {dtype}, best of these, images/s"
        lines.append(_row(label, best["ours"], best["theirs"], each["best_ratio"]))
    lines.append(_row("folder of 12 MP JPEGs, images/s", summary["folder_images_per_second"]))
    alone = summary["encoder_alone_images_per_second"]
    lines.append(_row("the encoder alone, same count, images/s", alone))
    lines.append(_row("folder against encoder alone", summary["folder_to_encoder"]))
    lines.append(_row("decode and resize 12 MP, core-seconds", summary["decode_core_seconds"]))
    for count, peak in summary["peak_over_weights_gb"].items():
        lines.append(f"| peak memory over the weights, {count} files | {peak:.2f} GB | | |")
    loading = summary["loading"]
    for what, key in (("load float32, seconds", "seconds"), ("load float32, peak GB", "peak_gb")):
        ratio = loading["seconds_ratio"] if key == "seconds" else None
        lines.append(_row(what, loading["ours"][key], loading["theirs"][key], ratio))
    for name, seconds in summary["start_seconds"].items():
        what = "import aim_mlx" if name == "import" else f"aim-mlx {name}"
        lines.append(f"| {what} | {_time(seconds)} | | |")
    lines += ["", "| goal | measured | wanted | holds |", "|---|---|---|---|"]
    for goal in result["goals"]:
        holds = "yes" if goal["holds"] else "**no**"
        lines.append(f"| {goal['goal']} | {goal['measured']} | {goal['wanted']} | {holds} |")
    return "\n".join(lines)


def _row(what: str, *cells: dict[str, float] | None) -> str:
    shown = [_range(cell) for cell in cells] + [""] * (3 - len(cells))
    return f"| {what} | {' | '.join(shown)} |"


def _range(cell: dict[str, float] | None) -> str:
    return f"{cell['median']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})" if cell else ""


def _time(seconds: dict[str, float]) -> str:
    return f"{1e3 * seconds['median']:.0f} ms"
