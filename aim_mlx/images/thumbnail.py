"""Small upright JPEGs of images, to look at."""

import io

from PIL import Image

from aim_mlx.images.decode import ImageSource, decode

_QUALITY = 80


def thumbnail(source: ImageSource, side: int) -> bytes:
    """An upright JPEG whose longer edge has at most `side` pixels. Raises ImageError."""
    image = decode(source, allow_truncated=True)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    # Without the profile and EXIF of the photograph, place included.
    image.info.clear()
    image.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
