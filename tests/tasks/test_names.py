"""Names of two lists matched whatever their order and, only where none is equal, whatever their spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.names import match_names, tell_matched

_NAMES = st.lists(st.sampled_from(["nose", "Nose", "left_ear", "Left Ear", "tail", "paw", ""]), unique=True)


@given(_NAMES, _NAMES)
def test_what_matches_is_equal_and_nothing_is_lost(ours, theirs):
    try:
        matched = match_names(ours, theirs, what="keypoint")
    except DataError:
        assert not set(ours) & set(theirs)
        return
    pairs = [(ours[a], theirs[b]) for a, b in zip(matched.ours, matched.theirs, strict=True)]
    if matched.respelled:
        assert not set(ours) & set(theirs) and tuple(pairs) == matched.respelled
    else:
        assert {one for one, _ in pairs} == set(ours) & set(theirs)
        assert all(one == other for one, other in pairs)
    assert len(set(matched.theirs)) == len(pairs) and list(matched.ours) == sorted(set(matched.ours))
    assert {one for one, _ in pairs} | set(matched.left_out) == set(ours)
    assert {other for _, other in pairs} | set(matched.left_out_theirs) == set(theirs)


def test_spelling_matters_as_soon_as_one_name_is_equal():
    matched = match_names(("nose", "left_ear"), ("nose", "Left-Ear"), what="keypoint")
    assert matched.left_out == ("left_ear",) and matched.left_out_theirs == ("Left-Ear",)
    assert len(tell_matched(matched, what="keypoint")) == 2


def test_two_names_that_could_be_meant_match_nothing():
    matched = match_names(("LEFT EAR", "NOSE"), ("left_ear", "left-ear", "nose"), what="keypoint")
    assert matched.respelled == (("NOSE", "nose"),) and matched.left_out == ("LEFT EAR",)
    assert "NOSE = nose" in tell_matched(matched, what="keypoint")[0]


def test_nothing_in_common_is_one_line_with_both():
    with pytest.raises(DataError, match="no class in common.*cat, dog.*cow\\\\nmoo") as raised:
        match_names(("cat", "dog"), ("cow\nmoo",), what="class")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="and 988 more"):
        match_names([str(number) for number in range(1000)], ("cow",), what="class")


def test_equal_lists_are_themselves():
    matched = match_names(("a", "b"), ("a", "b"), what="class")
    assert matched == ((0, 1), (0, 1), (), (), ()) and tell_matched(matched, what="class") == []
