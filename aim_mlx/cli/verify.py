"""`aim-mlx verify`: whether a store is sound, complete, and made of the photos as they are."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_mlx.cli.options import AsJson, Offline, Store
from aim_mlx.wording import counted, escaped

if TYPE_CHECKING:
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
    from aim_mlx.store.reader import EmbeddingStore
    from aim_mlx.store.verify import verify as check

    report, opened = _Report(as_json), EmbeddingStore(store)
    findings = check(opened, sample, seed)
    for fault in findings.faults:
        report.fault(fault)
    if sample and not findings.sound:
        report.say("no photo was embedded again: repair the store first")
    elif findings.sample:
        report.recompute(opened, findings, seed, offline)
    report.summary(str(store), findings)
    if not findings.sound:
        return 5
    return 0 if findings.complete else 1


class _Report:
    """Says what was found on stderr, and with `as_json` on stdout too."""

    def __init__(self, as_json: bool):
        self._as_json = as_json
        self._outcomes: Counter[str] = Counter()  # of rows that were computed again

    def say(self, line: str) -> None:
        print(escaped(line), file=sys.stderr)

    def _emit(self, event: str, record: dict[str, Any]) -> None:
        if self._as_json:
            print(json.dumps({"event": event, **record}), flush=True)

    def fault(self, fault: "Fault") -> None:
        self._emit("fault", vars(fault))
        self.say(f"fault: {fault}")

    def recompute(
        self, store: "EmbeddingStore", findings: "Findings", seed: int, offline: bool
    ) -> None:
        """Embeds the sample again; each row that differs is a fault."""
        from huggingface_hub.utils import tqdm  # on stderr, and only on a terminal

        from aim_mlx.loading import load_encoder
        from aim_mlx.store.verify import recompute

        cosines = []
        encoder = load_encoder(store, offline=offline, progress=tqdm)
        for row in recompute(store, encoder, findings.sample):
            self._outcomes[row.outcome] += 1
            self._emit("row", vars(row))
            if row.cosine is None:
                self.say(f"{row.path} was not compared: {row.outcome}: {row.detail}")
                continue
            cosines.append(row.cosine)
            if row.fault:
                findings.faults.append(row.fault)
                self.fault(row.fault)
        photos = counted(len(findings.sample), "photo")
        self.say(
            f"{len(cosines):,} of {photos} (seed {seed}) embedded again, "
            f"{self._outcomes['same']:,} gave the same vector"
            + (f"; lowest cosine {min(cosines):.6f}" if cosines else "")
        )

    def summary(self, store: str, findings: "Findings") -> None:
        account = findings.account
        record = {
            "store": store,
            "sound": findings.sound,
            "complete": findings.complete,
            "rows": findings.rows,
            "shards": findings.shards,
            "faults": len(findings.faults),
            **(asdict(account) if account else {}),
            "recomputed": dict(self._outcomes),
        }
        self._emit("summary", record)
        counts = f"{counted(findings.rows, 'row')} in {counted(findings.shards, 'shard')}"
        if account:
            counts += (
                f"; {counted(account.listed, 'file')} listed, {account.embedded:,} embedded, "
                f"{account.skipped:,} skipped, {account.ignored:,} ignored"
            )
        if not findings.sound:
            self.say(f"{counted(len(findings.faults), 'fault')}: {counts}")
        elif findings.complete:
            self.say(f"sound and complete: {counts}")
        else:
            left = f", {account.missing:,} still to come" if account else ""
            self.say(
                f"sound, but the last run was not finished: {counts}{left}: embed again to go on"
            )
