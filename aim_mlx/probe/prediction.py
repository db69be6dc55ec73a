"""Photos to the classes of a trained probe."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from aim_mlx.images import Listing, Skip
from aim_mlx.probe.probe import AttentiveProbe
from aim_mlx.report.contact_sheet import Origin
from aim_mlx.words.classify import Choice, Classified


@dataclass(frozen=True)
class Predicted:
    """Image files as a source of classified rows."""

    probe: AttentiveProbe
    listing: Listing

    def rows(
        self, choice: Choice, skipped: Callable[[Skip], None]
    ) -> Generator[Classified, None, None]:
        """The classes of each image, in order; what cannot be decoded goes to `skipped`."""
        paths = self.listing.files
        with closing(self.probe.predict_stream(paths)) as rows:
            for row in rows:
                path = paths[row.index]
                if row.failure is not None:
                    skipped(Skip(path, row.failure.reason, row.failure.detail))
                else:
                    labels = choice.of(self.probe.classes, row.vector)
                    yield Classified(path, labels, row.index, row.multi_frame)

    @property
    def origin(self) -> Origin:
        """The model that the probe was trained on."""
        return Origin(self.probe.model)

    def locate(self, row: Classified) -> Path:
        """Where the photo is."""
        return Path(row.path)
