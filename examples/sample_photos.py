"""Writes a folder of real photographs to try things on: python examples/sample_photos.py DIR

Not square, one of them stored on its side with an EXIF tag, one cut short, so that a first run
shows what happens to each. examples/photos/README.md says whose they are.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

PHOTOS = Path(__file__).parent / "photos"
_ROTATED_CLOCKWISE = 6  # the value of the EXIF tag Orientation that undoes ROTATE_90


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in sorted(PHOTOS.glob("*.jpg")):
        shutil.copyfile(photo, folder / photo.name)
    exif = Image.Exif()
    exif[0x0112] = _ROTATED_CLOCKWISE
    with Image.open(PHOTOS / "chelsea.jpg") as cat:
        turned = cat.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "on_its_side.jpg", exif=exif, quality=92)
    whole = (PHOTOS / "coffee.jpg").read_bytes()
    (folder / "cut_short.jpg").write_bytes(whole[: len(whole) // 2])
    print(f"{len(list(folder.iterdir()))} photographs in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photos"))
