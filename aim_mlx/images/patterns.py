"""Globs that say which of the files found in folders are taken."""

import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

from aim_mlx.errors import UsageError


class Patterns:
    """Globs over paths below a source: `*` (crosses folders), `?`, `[abc]`, `[!abc]`.

    Case matters. A glob without "/" is matched against the name, one with "/" against the whole
    path; one that ends in "/" means folders only, one that begins with it the top of the source.
    Raises UsageError for an empty glob.
    """

    def __init__(self, globs: Iterable[str]):
        if isinstance(globs, str):
            globs = (globs,)
        self._globs: list[tuple[str, bool, bool]] = []  # glob, of whole paths, of folders only
        for text in globs:
            glob = text.removesuffix("/").removeprefix("/")
            if not glob.strip("/"):
                raise UsageError(f"expected a pattern such as '*.png' or 'drafts/', got {text!r}")
            self._globs.append((_composed(glob), "/" in text.removesuffix("/"), text[-1] == "/"))

    def __bool__(self) -> bool:
        return bool(self._globs)

    def match(self, path: str, is_folder: bool) -> bool:
        """Whether any glob matches this path, which is given below its source."""
        path = _composed(path)
        name = path.rpartition("/")[2]
        return any(
            fnmatchcase(path if of_paths else name, glob)
            for glob, of_paths, folders_only in self._globs
            if is_folder or not folders_only
        )


def _composed(text: str) -> str:
    # What is typed as one letter may be two in a file's name: macOS takes them for the same.
    return unicodedata.normalize("NFC", text)
