""".mat files: as SciPy reads them where they are whole, one line where not, and never a crash."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from hardmine_jax.data import matlab
from hardmine_jax.data.problems import DataError

RNG = np.random.default_rng(0)
CONTENT = {
    "joints": RNG.normal(size=(14, 3, 5)), "whole": np.arange(24.0).reshape(2, 3, 4), "one": np.float32(3),
    "small": RNG.integers(0, 200, (3, 4)).astype(np.uint16), "none": np.zeros((3, 0)),
    "signed": RNG.integers(-9, 9, (2, 2, 7)),
}  # fmt: skip
OTHERS = {
    "text": "abc", "cell": np.array([["a", "bb"]], object), "complex": np.ones(3) * 1j, "struct": {"a": 1},
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", CONTENT)
    return tmp_path / "a.mat"


def load(path, names=("joints",)):
    return matlab.load(path, names, where="nowhere")


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_are_those_that_scipy_reads(tmp_path, packed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, OTHERS | CONTENT, do_compression=packed)
    expected, found = scipy.io.loadmat(path), load(path, {*CONTENT, *OTHERS, "absent"})
    assert found.keys() == {*CONTENT, *OTHERS}
    for name in CONTENT:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)
    assert all(found[name].dtype == object and found[name].size == 0 for name in OTHERS)
    assert load(path).keys() == {"joints"}


def test_the_other_order_of_bytes(path):
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    kind, shape = struct.pack(">II", 6, 0), struct.pack(">ii", 1, 2)
    parts = element(6, kind) + element(5, shape) + element(1, b"joints")
    matrix = element(14, parts + element(9, struct.pack(">dd", 0.5, -2.0)))
    path.write_bytes(b"MATLAB".ljust(124) + b"\x01\x00MI" + matrix)
    np.testing.assert_array_equal(load(path)["joints"], [[0.5, -2.0]])


def test_damage_that_crashes_scipy_is_one_line(path):
    content = path.read_bytes()
    for place in range(128, 220, 4):
        for number in (0, 1, 14, 0x7FFFFFFF, 0xFFFFFFFF):
            path.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
            try:
                load(path)
            except DataError as error:
                assert "cannot be read as a MATLAB file" in str(error) and "nowhere" in str(error)


@pytest.mark.parametrize("content", [b"", b"x" * 200, bytes(127), b"MATLAB".ljust(124) + b"\x00\x01XX" * 9])
def test_no_matlab_file(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a MATLAB file of version 5 to 7"):
        load(path)


def test_a_packed_bomb_is_refused_before_it_fills_the_memory(path, monkeypatch):
    monkeypatch.setattr(matlab, "MAX_BYTES", 2**20)
    data = zlib.compress(bytes(2**24), 9)
    assert len(data) < 2**15
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(data)) + data)
    with pytest.raises(DataError, match="more than 1,048,576 bytes once unpacked"):
        load(path)
