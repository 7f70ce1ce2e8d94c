"""Skeleton: what it derives, and what it refuses."""

import pytest

from hardmine_jax.pose import Skeleton


def _skeleton(**changes) -> Skeleton:
    fields = {
        "names": ("nose", "left hand", "right hand", "left foot", "right foot"),
        "flip_pairs": ((1, 2), (3, 4)),
        "sigmas": (0.03, 0.06, 0.06, 0.09, 0.09),
        "edges": ((0, 1), (0, 2)),
    }
    return Skeleton(**(fields | changes))


def test_flip_permutation_is_its_own_inverse():
    permutation = _skeleton().flip_permutation
    assert permutation == (0, 2, 1, 4, 3)
    assert tuple(permutation[i] for i in permutation) == tuple(range(_skeleton().num_keypoints))


def test_lists_as_they_come_from_json_hash_the_same():
    listed = _skeleton(
        flip_pairs=[[1, 2], [3, 4]], edges=[[0, 1], [0, 2]], sigmas=[0.03, 0.06, 0.06, 0.09, 0.09]
    )
    assert listed == _skeleton() and hash(listed) == hash(_skeleton())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"names": ("a", "b", "a", "c", "d")}, r"\['a'\] appear twice"),
        ({"sigmas": (0.1, 0.2)}, "2 sigmas for 5 keypoints"),
        ({"sigmas": (0.1, 0.2, 0.0, 0.1, 0.1)}, "must all be positive"),
        ({"sigmas": (0.1, 0.2, float("nan"), 0.1, 0.1)}, "must all be positive"),
        ({"flip_pairs": ((1, 5),)}, r"flip pair \(1, 5\) must be two indices in 0 .. 4"),
        ({"flip_pairs": ((1, 2), (2, 3))}, r"\['right hand'\] stand twice"),
        ({"flip_pairs": ((1, 1),)}, r"\['left hand'\] stand twice"),
        ({"edges": ((0, -1),)}, r"edge \(0, -1\)"),
        ({"edges": ((0, 1, 2),)}, r"edge \(0, 1, 2\)"),
    ],
)
def test_refusals_name_the_thing(changes, message):
    with pytest.raises(ValueError, match=message):
        _skeleton(**changes)
