"""What image files may state: sizes from headers of every kind, and the limits before anything is decoded."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from hardmine_jax.data import images
from hardmine_jax.data.image_size import stated_size
from hardmine_jax.data.images import decode_smaller
from hardmine_jax.data.pose import records
from hardmine_jax.data.problems import Report, UnreadableImage

NOISE = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


def encode(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, NOISE, list(options))[1].tobytes()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        size, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(name + content))
        return size + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(width: int, height: int) -> bytes:
    """A whole one, another size written into its frame."""
    content = bytearray(encode(".jpg"))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".webp", ".tiff"])
def test_stated_size_is_the_decoded_one(suffix):
    assert stated_size(encode(suffix)) == NOISE.shape[:2]
    assert images.decode_image(encode(suffix)).shape == NOISE.shape


def test_stated_size_of_other_forms():
    progressive = encode(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    restarts = encode(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    assert stated_size(progressive) == stated_size(restarts) == (50, 70)
    assert stated_size(encode(".webp", cv2.IMWRITE_WEBP_QUALITY, 50)) == (50, 70)
    # A thumbnail's frame inside a segment, bytes between segments and doubled markers, as libjpeg takes them.
    inner = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    segment = b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner + b"junk\xff"
    thumbed = progressive[:2] + segment + progressive[2:]
    assert stated_size(thumbed) == (50, 70) and images.decode_image(thumbed).shape == NOISE.shape
    extended = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + bytes([69, 0, 0, 49, 0, 0])
    assert stated_size(extended) == (50, 70)
    upside_down = b"BM" + bytes(12) + struct.pack("<Iii", 40, 70, -50)
    assert stated_size(upside_down) == (50, 70)
    assert stated_size(b"BM" + bytes(12) + struct.pack("<IHH", 12, 70, 50)) == (50, 70)
    assert stated_size(b"MM\0*\0\0\0\x08\0\2\1\0\0\3\0\0\0\1\0F\0\0\1\1\0\3\0\0\0\1\x002\0\0") == (50, 70)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".webp", ".tiff"])
def test_a_header_that_is_cut_off_states_nothing_or_the_truth(suffix):
    content = encode(suffix)
    for length in range(60):
        assert stated_size(content[:length]) in (None, (50, 70))
    assert stated_size(b"P6 70 50 255 ") is None


@pytest.mark.parametrize(
    "content", [png(30_000, 30_000), png(2**31 - 1, 2**31 - 1), jpeg(65_500, 65_500), png(12_000, 12_000),
                b"GIF89a" + b"\xff" * 20, b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**31 - 1, -(2**31))],
    ids=["png_30000", "png_most", "jpeg", "png_12000", "gif", "bmp"],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_is_decoded_and_named(content, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    reason = "image of more than 134,217,728 pixels"
    assert images.why_not_decoded(content) == reason and images.decode_image(content) is None
    person = records.Person(np.ones((1, 2)), np.ones(1))
    report = Report([], [])
    picture = records.Picture("bomb", 1, content, (person,))
    assert list(records.usable([picture], report)) == []
    assert report == Report([(reason, "bomb")], [])
    with pytest.raises(UnreadableImage):
        decode_smaller({"image": content, "name": "bomb"}, 3)


def test_the_limit_itself_is_let_through():
    assert images.why_not_decoded(png(2**14, 2**13)) is None
    assert images.why_not_decoded(png(2**14, 2**13 + 1)) is not None


def test_scans_without_end_are_refused():
    progressive = encode(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = progressive.rindex(b"\xff\xda")
    bomb = progressive[:-2] + progressive[last:-2] * 200 + b"\xff\xd9"
    assert images.why_not_decoded(bomb) == "image of more than 100 scans"
    assert images.decode_image(bomb) is None and images.decode_image(progressive) is not None


def test_only_regular_files_of_some_size_are_read(tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(encode(".png"))
    (tmp_path / "link.png").symlink_to(image)
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "nothing.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert images.open_image(tmp_path / "link.png", None)[1] == (50, 70)
    assert images.open_image(tmp_path / "nothing.png", None) == "image absent"
    for name in ("zeros", "pipe", "large"):
        assert images.open_image(tmp_path / f"{name}.png", None) == "image unreadable"
