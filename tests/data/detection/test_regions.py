"""Boxes that cannot be used: mended, left alone, or nothing; never background."""

import numpy as np
import pytest

from hardmine_jax.data.detection.regions import are_relative, usable_box

SIZE = (40, 60)
NAN = float("nan")


@pytest.mark.parametrize(
    "given, box, is_object, said",
    [
        ((5, 6, 15, 26), (5, 6, 15, 26), True, None),
        ((15, 26, 5, 6), (5, 6, 15, 26), True, "box inverted"),
        ((15, 6, 5, 26), (5, 6, 15, 26), True, "box inverted"),
        ((50, 6, 70, 26), (50, 6, 60, 26), True, "box reaches out"),
        ((5, 6, 5.5, 6.5), (5, 6, 5.5, 6.5), True, "box smaller than a pixel"),
        # One side is known: a square of it.
        ((10, 20, 30, 20), (10, 10, 30, 30), False, "box of no area"),
        ((20, 30, 20, 10), (10, 10, 30, 30), False, "box of no area"),
        # Nothing is known but that it is there.
        ((10, 20, 10, 20), (0, 0, 60, 40), False, "box of no area"),
        ((NAN, 6, 15, 26), (0, 0, 60, 40), False, "box that is no finite number"),
        ((5, 6, np.inf, 26), (0, 0, 60, 40), False, "box that is no finite number"),
        ((60, 6, 70, 26), None, False, "box outside"),
        ((-9, -9, 0, -3), None, False, "box outside"),
        # As float32, which records keep, it has no area.
        ((10, 20, 10 + 1e-9, 20 + 1e-9), (0, 0, 60, 40), False, "box of no area"),
    ],
)
def test_what_becomes_of_a_box(given, box, is_object, said):
    found = usable_box(np.array(given, float), SIZE)
    assert found.is_object == is_object
    assert str(found.note or found.problem).startswith(str(said))
    if box is None:
        assert found.box is None
    else:
        np.testing.assert_array_equal(found.box, box)


def test_relative_boxes_are_told_from_small_ones():
    part, whole, pixels = ([0.1, 0.2, 0.4, 0.5], [0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 3.0, 4.0])
    for boxes, expected in (
        ([part, whole], True),
        ([whole], False),
        ([part, pixels], False),
        ([], False),
        ([[NAN] * 4], False),
        ([part, [NAN] * 4], True),
    ):
        assert are_relative([np.array(box) for box in boxes]) == expected
