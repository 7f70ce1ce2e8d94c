"""Height and width that an encoded image states, read from its header: nothing is decoded.

The kinds are JPEG, PNG, BMP, GIF, WebP and TIFF. Where a file states its size twice, the larger counts: what
is read here is a limit on what a decoder may make of it.
"""

import struct

_PNG = b"\x89PNG\r\n\x1a\n"
# Start of frame: C0 to CF but for DHT, JPG and DAC.
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}


def stated_size(encoded: bytes) -> tuple[int, int] | None:
    """(H, W), or None where the bytes are of no kind that is read here, or end before they say it.

    >>> stated_size(b"GIF89a" + bytes([44, 1, 200, 0]) + bytes(20)), stated_size(b"<html>")
    ((200, 300), None)
    """
    try:
        if encoded.startswith(b"\xff\xd8\xff"):
            return _jpeg(encoded)
        if encoded.startswith(_PNG):
            width, height = struct.unpack_from(">II", encoded, 16)
            return (height, width) if encoded[12:16] == b"IHDR" else None
        if encoded.startswith(b"BM"):
            return _bmp(encoded)
        if encoded.startswith(b"GIF8"):
            return struct.unpack_from("<HH", encoded, 6)[::-1]
        if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
            return _webp(encoded)
        if encoded.startswith((b"II*\0", b"MM\0*")):
            return _tiff(encoded)
    except struct.error:
        pass
    return None


def foreign_kind(encoded: bytes) -> str | None:
    """What bytes of none of these kinds are, and what to do, where they say it.

    >>> foreign_kind(b"P5\\n2 2\\n255\\n1234"), foreign_kind(b"junk")
    ('PGM: convert it to JPEG or PNG', None)
    """
    if not encoded:
        return "an empty file"
    for start, reason in _NO_IMAGES.items():
        if encoded.startswith(start):
            return reason
    kind: str | None = next((one for start, one in _FOREIGN.items() if encoded.startswith(start)), None)
    if encoded[4:8] == b"ftyp":
        # The first brand may be a general one, that of AVIF among those that follow it.
        kind = next((kind for brand, kind in _BRANDS.items() if brand in encoded[8:64]), "a film")
    if encoded[:1] == b"P" and encoded[1:2] in b"1234567" and encoded[2:3].isspace():
        kind = ("PBM", "PGM", "PPM", "PBM", "PGM", "PPM", "PAM")[int(encoded[1:2]) - 1]
    return None if kind is None else f"{kind}: convert it to JPEG or PNG"


_NO_IMAGES = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the files themselves (git lfs pull)",
    b"<!DOCTYPE": "a web page: download it again",
    b"<html": "a web page: download it again",
}
_FOREIGN = {
    b"\0\0\0\x0cjP  \r\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"8BPS": "PSD",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
    b"\x93NUMPY": "a NumPy array",
    b"Pf\n": "PFM",
    b"PF\n": "PFM",
    b"\x59\xa6\x6a\x95": "Sun raster",
}
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}


def _jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Of the frame that the markers lead to; the frame of a thumbnail lies inside a segment and is passed."""
    place = 2
    while True:
        # As libjpeg does: bytes between segments are passed over, 0xFF may stand several times.
        place = encoded.find(b"\xff", place)
        if place < 0:
            return None
        while encoded[place : place + 1] == b"\xff":
            place += 1
        (marker,) = struct.unpack_from("B", encoded, place)
        place += 1
        if marker == 0 or marker in _JPEG_BARE:
            continue
        if marker in _JPEG_FRAMES:
            return struct.unpack_from(">HH", encoded, place + 3)
        if marker in (0xD9, 0xDA):
            return None
        place += max(struct.unpack_from(">H", encoded, place)[0], 2)


def _bmp(encoded: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", encoded, 14)[0] == 12:
        return struct.unpack_from("<HH", encoded, 18)[::-1]
    width, height = struct.unpack_from("<ii", encoded, 18)
    # Rows from top to bottom are a negative height.
    return abs(height), abs(width)


def _webp(encoded: bytes) -> tuple[int, int] | None:
    kind = encoded[12:16]
    if kind == b"VP8X":
        sides = struct.unpack_from("<6B", encoded, 24)
        width, height = (int.from_bytes(bytes(side), "little") + 1 for side in (sides[:3], sides[3:]))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _tiff(encoded: bytes) -> tuple[int, int] | None:
    """Of the first page."""
    order = "<" if encoded.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", encoded, 4)
    (count,) = struct.unpack_from(f"{order}H", encoded, directory)
    sides: dict[int, list[int]] = {256: [], 257: []}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", encoded, entry)
        if tag in sides and kind in (3, 4):
            sides[tag] += struct.unpack_from(order + "HI"[kind - 3], encoded, entry + 8)
    return (max(sides[257]), max(sides[256])) if all(sides.values()) else None
