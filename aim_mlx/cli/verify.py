"""`aim-mlx verify`: whether a store is sound, complete, and made of the photos as they are."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aim_mlx.cli.options import AsJson, Offline, Store
from aim_mlx.wording import counted, escaped

if TYPE_CHECKING:
    from aim_mlx.cli.reporter import Reporter
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.verify import Fault, Findings


def verify(
    store: Store,
    sample: Annotated[
        int, typer.Option(min=0, help="Embed this many of its photos again and compare.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which photos --sample takes.")] = 0,
    offline: Offline = False,
    as_json: AsJson = False,
) -> int:
    """Check that a store is sound and complete.

    Reads every byte, row and vector. Every listed file must have a row, or a reason why it has
    none. Changes nothing.

    Ends with 0 if the store is sound and complete, 1 if it is sound but the last run was not
    finished, 5 if something is damaged or wrong, 4 if the model for --sample is missing or is not
    the one that made the store.
    """
    from aim_mlx.cli.reporter import Reporter
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.verify import verify as check

    report, opened = Reporter(as_json), EmbeddingStore(store)
    findings = check(opened, sample, seed)
    for fault in findings.faults:
        _say_fault(report, fault)
    outcomes: dict[str, int] = {}
    if sample and not findings.sound:
        report.say("no photo was embedded again: repair the store first")
    elif findings.sample:
        outcomes = _recompute(report, opened, findings, seed, offline)
    report.say(_summary(findings))
    record = {
        "store": str(store),
        "sound": findings.sound,
        "complete": findings.complete,
        "rows": findings.rows,
        "shards": findings.shards,
        "faults": len(findings.faults),
        **(asdict(findings.account) if findings.account else {}),
        "recomputed": outcomes,
    }
    report.emit("summary", record)
    if not findings.sound:
        return 5
    return 0 if findings.complete else 1


def _say_fault(report: "Reporter", fault: "Fault") -> None:
    report.emit("fault", vars(fault))
    report.say(f"fault: {escaped(str(fault))}")


def _recompute(
    report: "Reporter", store: "EmbeddingStore", findings: "Findings", seed: int, offline: bool
) -> dict[str, int]:
    """Embeds the sample again; the number of rows by outcome. Each row that differs is a fault."""
    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.loading import load_encoder
    from aim_mlx.store.verify import recompute

    outcomes: Counter[str] = Counter()
    cosines = []
    encoder = load_encoder(store, offline=offline, progress=tqdm)
    for row in recompute(store, encoder, findings.sample):
        outcomes[row.outcome] += 1
        report.emit("row", vars(row))
        if row.cosine is None:
            reason = f"{row.outcome}: {escaped(row.detail)}"
            report.say(f"{escaped(row.path)} was not compared: {reason}")
            continue
        cosines.append(row.cosine)
        if row.fault:
            findings.faults.append(row.fault)
            _say_fault(report, row.fault)
    photos = counted(len(findings.sample), "photo")
    report.say(
        f"{len(cosines):,} of {photos} (seed {seed}) embedded again, "
        f"{outcomes['same']:,} gave the same vector"
        + (f"; lowest cosine {min(cosines):.6f}" if cosines else "")
    )
    return dict(outcomes)


def _summary(findings: "Findings") -> str:
    account = findings.account
    counts = f"{counted(findings.rows, 'row')} in {counted(findings.shards, 'shard')}"
    if account:
        counts += (
            f"; {counted(account.listed, 'file')} listed, {account.embedded:,} embedded, "
            f"{account.skipped:,} skipped, {account.ignored:,} ignored"
        )
    if not findings.sound:
        return f"{counted(len(findings.faults), 'fault')}: {counts}"
    if findings.complete:
        return f"sound and complete: {counts}"
    left = f", {account.missing:,} still to come" if account else ""
    return f"sound, but the last run was not finished: {counts}{left}: embed again to go on"
