"""How an encoded image is to be turned, read from its metadata.

Pillow reads all of EXIF for that, and prints a warning for each damaged entry.
"""

import re
import struct
from typing import Any

_ORIENTATION = 0x0112
_WIDTHS = {1: 1, 3: 2, 4: 4}  # bytes of a whole number, by its type
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(image: Any) -> int:
    """The EXIF orientation of an image that Pillow has decoded; 1 where there is none.

    That of a TIFF is among its own tags. XMP counts where EXIF says nothing, as for Pillow.
    """
    found = image.tag_v2.get(_ORIENTATION) if hasattr(image, "tag_v2") else _from_exif(image.info)
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        match = _XMP.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found if isinstance(found, int) else 1


def _from_exif(info: dict[Any, Any]) -> int | None:
    """The first such tag of the first directory (TIFF 6.0, page 14), as far as that is there."""
    data = info.get("exif")
    try:
        if data is None and (text := info.get("Raw profile type exif")):
            data = bytes.fromhex("".join(text.split("\n")[3:]))
        data = re.sub(b"^(Exif\0\0){1,2}", b"", data or b"")
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        start = struct.unpack_from(order + "I", data, 4)[0]
        count = struct.unpack_from(order + "H", data, start)[0]
    except (KeyError, ValueError, struct.error):
        return None
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        if tag == _ORIENTATION and kind in _WIDTHS and 1 <= number <= 4 // _WIDTHS[kind]:
            value = data[at + 8 : at + 8 + _WIDTHS[kind]]
            return int.from_bytes(value, "little" if order == "<" else "big")
    return None
