"""Web pages of what a search gave, and of duplicates."""

from pathlib import Path

from aim_mlx.report.contact_sheet import Origin, Picture, Section, write_contact_sheet
from aim_mlx.search.duplicates import Group, Member, account
from aim_mlx.search.queries import Query
from aim_mlx.store.reader import EmbeddingStore
from aim_mlx.wording import counted


def write_search_page(
    target: Path,
    store: EmbeddingStore,
    like: Query,
    unlike: Query,
    hits: list[tuple[int, float]],
) -> None:
    """Writes a page of the photos searched for and the rows that were nearest, with their cosines.

    Raises OutputError.
    """
    sections = [
        Section(title, [Picture(path, [path]) for path in query.images], ", ".join(query.texts))
        for title, query in (("Similar to", like), ("Not similar to", unlike))
        if query.images or query.texts
    ]
    results = [
        Picture(store.locate(row), [f"{score:.4f}", store.paths[row]]) for row, score in hits
    ]
    sections.append(Section("Results", results))
    note = (
        f"The {counted(len(hits), 'photo')} most similar, of {len(store):,}. The number below each "
        "is its cosine similarity to what was searched for."
    )
    origin = Origin(store.manifest["model"], store.folder)
    write_contact_sheet(target, "Similar photos", sections, origin, note)


def write_duplicates_page(
    target: Path, store: EmbeddingStore, groups: list[Group], threshold: float | None
) -> None:
    """Writes a page with a section for each group; `threshold` is that of near-duplicates, if any.

    Raises OutputError.
    """
    sections = []
    for number, group in enumerate(groups, 1):
        kind = "with the same content"
        if not group.exact:
            kind = f"with a similarity of at least {group.lowest:.4f} to the first"
        pictures = [Picture(store.locate(each.row), _lines(each)) for each in group.photos]
        count = counted(len(pictures), "photo")
        sections.append(Section(f"Group {number}", pictures, f"{count} {kind}."))
    note = f"{account(groups, len(store))}."
    if threshold is not None:
        note += (
            f" In a group of near-duplicates every photo has a cosine similarity of {threshold:g} "
            "or more to the first."
        )
    origin = Origin(store.manifest["model"], store.folder)
    write_contact_sheet(target, "Duplicates", sections, origin, note)


def _lines(photo: Member) -> list[str]:
    size = f"{photo.width} x {photo.height} pixels"
    return [photo.likeness, size, f"{photo.bytes:,} bytes", photo.modified, photo.path]
