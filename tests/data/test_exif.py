"""Photographs that EXIF turns: every orientation in every kind of file, and what reads them."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from hardmine_jax.data import exif, images
from hardmine_jax.data.problems import UnreadableImage

# Bright in the top left corner as stored, less bright in the top right one: all eight readings differ.
STORED = np.zeros((48, 80, 3), np.uint8)
STORED[:16, :16], STORED[:16, -16:] = 255, 128
# Rows and columns of what is seen, by EXIF 2.32: where the 0th row and the 0th column of the file are.
SEEN = {
    1: STORED, 2: STORED[:, ::-1], 3: STORED[::-1, ::-1], 4: STORED[::-1],
    5: STORED.swapaxes(0, 1), 6: np.rot90(STORED, -1), 7: np.rot90(STORED[:, ::-1], -1), 8: np.rot90(STORED),
}  # fmt: skip


def with_orientation(suffix: str, orientation: int, order: str = "<", image: np.ndarray = STORED) -> bytes:
    """The image in a file of that kind whose EXIF says how it is to be turned."""
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    encoded = cv2.imencode(suffix, image, options)[1].tobytes()
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    if suffix == ".jpg":
        return (
            encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + encoded[2:]
        )
    if suffix == ".png":
        chunk = b"eXIf" + block
        chunk = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return encoded[:33] + chunk + encoded[33:]
    if suffix == ".webp":
        sides = b"".join((side - 1).to_bytes(3, "little") for side in image.shape[1::-1])
        chunks = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + sides + encoded[12:]
        chunks += b"EXIF" + struct.pack("<I", len(block)) + block
        return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
    # TIFF: the entry is written into a copy of its directory, at the end of the file.
    (place,) = struct.unpack_from("<I", encoded, 4)
    (count,) = struct.unpack_from("<H", encoded, place)
    entries = [encoded[place + 2 + 12 * n : place + 14 + 12 * n] for n in range(count)]
    entries = [entry for entry in entries if entry[:2] != b"\x12\x01"]
    entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    directory = struct.pack("<H", len(entries)) + b"".join(sorted(entries)) + b"\0\0\0\0"
    return encoded[:4] + struct.pack("<I", len(encoded)) + encoded[8:] + directory


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_reader_sees_a_photograph_upright_or_as_stored(suffix, orientation):
    encoded = with_orientation(suffix, orientation)
    stored = exif.as_stored(encoded)
    assert (exif.orientation(encoded), exif.orientation(stored)) == (orientation, 1)
    for content, wanted in ((encoded, SEEN[orientation]), (stored, STORED)):
        found = images.decode_image(content)
        assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() < 40
        opened = images.open_image(content, None)
        assert opened.size == wanted.shape[:2]
        for halvings in range(4):
            small, steps = images.decode_smaller({"image": content, "name": "x"}, halvings)
            assert tuple(np.multiply(small.shape[1::-1], steps)) == wanted.shape[1::-1]
            again = cv2.resize(small, wanted.shape[1::-1], interpolation=cv2.INTER_NEAREST)[..., ::-1]
            assert np.abs(again.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_jpeg_made_smaller_lies_where_the_whole_one_does(orientation):
    # No side is a multiple of 8: the last pixels of the reduced image span fewer, and turning brings them to
    # the front.
    rows = np.linspace(0, 255, 203)[:, None, None] * np.ones((1, 301, 3))
    encoded = with_orientation(".jpg", orientation, image=rows.astype(np.uint8))
    whole = images.decode_image(encoded)[..., ::-1].astype(float)
    small, steps = images.decode_smaller({"image": encoded, "name": "x"}, 3)
    x, y = (
        np.clip((np.arange(n) + 0.5) * step - 0.5, 0, side - 1).round().astype(int)
        for n, step, side in zip(small.shape[1::-1], steps, whole.shape[1::-1], strict=True)
    )
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(small - whole[y][:, x])[inner].max() < 3


def test_auto_takes_the_reading_that_the_labels_fit():
    turned, half = with_orientation(".jpg", 6, ">"), with_orientation(".png", 3)
    upright, stored = (80, 48), (48, 80)

    def read(encoded: bytes, *args, **options):
        opened = images.open_image(encoded, *args, **options)
        return opened if isinstance(opened, str) else (opened.size, opened.note is not None)

    assert read(turned, upright) == (upright, False) and read(turned, stored) == (stored, False)
    assert read(turned, None) == (upright, True)
    assert read(turned, None, extent=(70.0, 40.0)) == (stored, False)
    assert read(turned, None, extent=(40.0, 70.0)) == (upright, False)
    assert read(turned, None, extent=(400.0, 70.0)) == (upright, True)
    assert read(turned, (99, 99)) == "image is not of the listed width and height (turned by EXIF?)"
    assert read(turned, stored, orientation="upright") == read(turned, (99, 99))
    assert read(turned, None, orientation="stored") == (stored, False)
    assert read(half, stored) == (stored, True)
    for orientation, wanted in (("auto", SEEN[3]), ("upright", SEEN[3]), ("stored", STORED)):
        opened = images.open_image(half, stored, orientation=orientation)
        np.testing.assert_array_equal(images.decode_image(opened.encoded), wanted)
        assert opened.encoded == images.oriented(half, stored, orientation)
    for size, wanted in ((upright, upright), (stored, stored), (None, upright)):
        assert images.decode_image(images.oriented(turned, size, "auto")).shape[:2] == wanted


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_damaged_exif_is_no_orientation_and_never_an_exception(suffix):
    content = with_orientation(suffix, 6)
    for length in range(0, len(content), 3):
        assert exif.orientation(content[:length]) in (1, 6)
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(content)
        for place in rng.integers(4, min(len(content), 200), 4):
            spoiled[place] = rng.integers(256)
        assert 1 <= exif.orientation(bytes(spoiled)) <= 8 and len(exif.as_stored(bytes(spoiled))) == len(
            content
        )
    assert exif.orientation(with_orientation(suffix, 0)) == exif.orientation(with_orientation(suffix, 9)) == 1


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_shown_by_the_depth_that_they_use(suffix, bits, channels):
    eight = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    eight[0, 0] = 255
    encoded = cv2.imencode(suffix, eight.astype(np.uint16) << (bits - 8))[1].tobytes()
    wanted = np.broadcast_to(eight[..., ::-1], (20, 30, 3))
    np.testing.assert_array_equal(images.decode_image(encoded), wanted)
    small, _ = images.decode_smaller({"image": encoded, "name": "x"}, 0)
    np.testing.assert_array_equal(small[..., ::-1], wanted)


def test_a_black_picture_of_sixteen_bits_stays_black_and_transparency_is_dropped():
    black = cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes()
    assert not images.decode_image(black).any()
    clear = np.full((4, 4, 4), 1000, np.uint16)
    clear[..., 3] = 65535
    assert (images.decode_image(cv2.imencode(".png", clear)[1].tobytes()) == 1000 >> 2).all()


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"\0\0\0 ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0 ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0 ftypheic\0\0\0\0", "HEIC"),
        (b"P6\n2 2\n255\n", "PPM"),
        (b"P5 2 2 255 ", "PGM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"", "an empty file"),
    ],
)
def test_files_of_other_kinds_are_named(start, kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(start + bytes(40) * bool(start))
    reason = images.open_image(tmp_path / "a.jpg", None)
    assert isinstance(reason, str) and reason.startswith(f"image is {kind}")
    with pytest.raises(UnreadableImage):
        images.decode_smaller({"image": start, "name": "x"}, 1)
