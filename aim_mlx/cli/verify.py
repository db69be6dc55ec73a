"""`aim-mlx verify`: whether a store is sound, complete, and made of the photos as they are."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_mlx.cli.options import Offline
from aim_mlx.wording import counted

if TYPE_CHECKING:
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.verify import Fault, Findings

_UNFINISHED = 1


def verify(
    store: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a store.")],
    sample: Annotated[
        int, typer.Option(min=0, help="Embed this many of its photos again and compare.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which photos --sample takes.")] = 0,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report on stdout, as JSON lines.")
    ] = False,
) -> int:
    """Check that a store is sound and complete.

    Every byte, row and vector is read, and every listed file must have its row or its reason.

    Ends with 0 if all is sound and complete, 5 if something is damaged or wrong, 4 if the model for
    --sample cannot be had or is another, 1 if all there is is sound but the last run was not
    finished. Nothing is changed.
    """
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.verify import verify as check

    opened = EmbeddingStore(store)
    findings = check(opened, sample, seed)
    for fault in findings.faults:
        _tell_fault(fault, as_json)
    outcomes: dict[str, int] = {}
    if findings.sound and findings.sample:
        outcomes = _recompute(opened, findings, seed, offline, as_json)
    elif sample and not findings.sound:
        _say("no photo was embedded again: mend the store first")
    _summary(store, findings, outcomes, as_json)
    if not findings.sound:
        return 5
    return 0 if findings.complete else _UNFINISHED


def _recompute(
    store: "EmbeddingStore", findings: "Findings", seed: int, offline: bool, as_json: bool
) -> dict[str, int]:
    """Embeds the sample again; the number of rows by outcome. A row that differs is a fault."""
    from collections import Counter

    from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

    from aim_mlx.cli.terminal import escaped
    from aim_mlx.loading import load_encoder
    from aim_mlx.store.verify import OVERWRITE, Fault, recompute

    encoder = load_encoder(store, offline=offline, progress=tqdm)
    outcomes: Counter[str] = Counter()
    lowest = 1.0
    for row in recompute(store, encoder, findings.sample):
        outcomes[row.outcome] += 1
        if as_json:
            _emit("row", vars(row))
        if row.cosine is None:
            _say(f"{escaped(row.path)} was not compared: {row.outcome}: {escaped(row.detail)}")
            continue
        lowest = min(lowest, row.cosine)
        if row.outcome == "differs":
            what = f"embedded again its vector is another (cosine {row.cosine:.6f})"
            fault = Fault(row.path, what, OVERWRITE)
            findings.faults.append(fault)
            _tell_fault(fault, as_json)
    compared = outcomes["same"] + outcomes["differs"]
    _say(
        f"{compared:,} of {counted(len(findings.sample), 'photo')} (seed {seed}) embedded again, "
        f"{outcomes['same']:,} gave the same vector"
        + (f"; lowest cosine {lowest:.6f}" if compared else "")
    )
    return dict(outcomes)


def _summary(store: Path, findings: "Findings", outcomes: dict[str, int], as_json: bool) -> None:
    from dataclasses import asdict

    account = findings.account
    if as_json:
        record = {
            "store": str(store),
            "sound": findings.sound,
            "complete": findings.complete,
            "rows": findings.rows,
            "shards": findings.shards,
            "faults": len(findings.faults),
            **(asdict(account) if account else {}),
            "recomputed": outcomes,
        }
        _emit("summary", record)
    counts = f"{counted(findings.rows, 'row')} in {counted(findings.shards, 'shard')}"
    if account is not None:
        counts += (
            f"; {counted(account.listed, 'file')} listed, {account.embedded:,} embedded, "
            f"{account.skipped:,} skipped, {account.ignored:,} ignored"
        )
    if not findings.sound:
        _say(f"{counted(len(findings.faults), 'fault')}: {counts}")
    elif findings.complete:
        _say(f"sound and complete: {counts}")
    else:
        waiting = f", {account.missing:,} still to come" if account else ""
        _say(f"sound, but the last run was not finished: {counts}{waiting}: embed again to go on")


def _tell_fault(fault: "Fault", as_json: bool) -> None:
    from aim_mlx.cli.terminal import escaped

    if as_json:
        _emit("fault", vars(fault))
    _say(f"fault: {escaped(str(fault))}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _emit(event: str, record: dict[str, Any]) -> None:
    print(json.dumps({"event": event, **record}), flush=True)
