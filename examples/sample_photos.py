"""Writes a folder of real photographs from scikit-image: python examples/sample_photos.py DIR

Not square, one of them stored on its side with an EXIF tag, one cut short, so that a first run
shows what happens to each. Needs scikit-image (in the extra `test`), no network.
"""

import sys
from pathlib import Path

from PIL import Image
from skimage import data

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
_ROTATED_CLOCKWISE = 6  # the value of the EXIF tag Orientation that undoes ROTATE_90


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=92)
    exif = Image.Exif()
    exif[0x0112] = _ROTATED_CLOCKWISE
    cat = Image.fromarray(data.chelsea()).transpose(Image.Transpose.ROTATE_90)
    cat.save(folder / "on_its_side.jpg", exif=exif, quality=92)
    whole = (folder / "coffee.jpg").read_bytes()
    (folder / "cut_short.jpg").write_bytes(whole[: len(whole) // 2])
    print(f"{len(list(folder.iterdir()))} photographs in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photos"))
