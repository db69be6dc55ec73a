"""Is a file a PyTorch archive at all? Looked at as a zip file, before torch opens it.

torch.save writes a zip archive of uncompressed records: one small pickle that describes the
tensors, and their bytes. Only that is accepted. Bare pickles, PyTorch's format from before 1.6
among them, never reach an unpickler, and no record can unfold into more than the file holds.
"""

import zipfile
from collections import Counter
from pathlib import Path

from aim_mlx.errors import CheckpointError
from aim_mlx.weights.safetensors_file import open_regular, refuse_foreign
from aim_mlx.weights.strict_json import at, show

LARGEST_PICKLE = 4 * 2**20  # bytes; the description of 1000 tensors has 200 thousand


def check_archive(path: Path) -> None:
    """Raises CheckpointError unless the file is a sound archive as torch.save writes it.

    Every record is read once and compared with its checksum, which torch itself does not do.
    """
    with open_regular(path) as file:
        start = file.read(512)
    if not start.startswith(b"PK\x03\x04"):
        _refuse(path, start)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(path, archive.infolist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"{at(path)} is a damaged or incomplete archive ({error!s:.100}): download it again"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"record {show(damaged)} of {at(path)} does not match its checksum: download it again"
        )


def _refuse(path: Path, start: bytes) -> None:
    if not start:
        raise CheckpointError(f"{at(path)} is empty: download it again")
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{at(path)} is a bare pickle, or older than PyTorch 1.6: expected an archive as "
            "torch.save writes it now; get another copy of the weights"
        )
    refuse_foreign(path, start)
    raise CheckpointError(
        f"{at(path)} is not a PyTorch archive: expected what torch.save writes, "
        f"got {show(start[:8])}"
    )


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """One pickle of modest size, no program, and nothing compressed, encrypted or doubled."""
    names = [record.filename for record in records]
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise CheckpointError(f"{at(path)} holds record {show(twice)} twice: download it again")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise CheckpointError(
                f"record {show(record.filename)} of {at(path)} is compressed or encrypted: "
                "expected plain records as torch.save writes them"
            )
    parts = {name.partition("/")[2] for name in names}
    if "constants.pkl" in parts:
        raise CheckpointError(
            f"{at(path)} is a TorchScript program, not weights: save its state_dict() instead"
        )
    pickles = [r for r in records if r.filename.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{at(path)} is a zip archive without a data.pkl: expected what torch.save writes"
        )
    if pickles[0].file_size > LARGEST_PICKLE:
        raise CheckpointError(
            f"{at(path)} describes its tensors in {pickles[0].file_size} bytes, expected at most "
            f"{LARGEST_PICKLE}: this is more than the weights of an encoder"
        )
