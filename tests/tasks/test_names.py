"""Names of two lists matched whatever their order and, without a doubt left, whatever their spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.names import describe_unmatched, match_names

_NAMES = st.lists(st.sampled_from(["nose", "Nose", "left_ear", "Left Ear", "tail", "paw", ""]), unique=True)


@given(_NAMES, _NAMES)
def test_what_matches_is_equal_and_nothing_is_lost(ours, theirs):
    try:
        matched = match_names(ours, theirs, what="keypoint")
    except DataError:
        assert not set(ours) & set(theirs)
        return
    pairs = [(ours[a], theirs[b]) for a, b in zip(matched.ours, matched.theirs, strict=True)]
    assert {one for one, other in pairs if one == other} == set(ours) & set(theirs)
    assert matched.respelled == tuple((one, other) for one, other in pairs if one != other)
    assert all(one.casefold() == other.casefold().replace(" ", "_") for one, other in pairs if "_" in one)
    assert len(set(matched.theirs)) == len(pairs) and list(matched.ours) == sorted(set(matched.ours))
    assert {one for one, _ in pairs} | set(matched.left_out) == set(ours)
    assert {other for _, other in pairs} | set(matched.left_out_theirs) == set(theirs)


def test_names_left_over_match_but_for_their_spelling_and_are_told():
    matched = match_names(("nose", "left_ear", "tail"), ("Left-Ear", "nose", "paw"), what="keypoint")
    assert matched.ours == (0, 1) and matched.theirs == (1, 0)
    assert matched.respelled == (("left_ear", "Left-Ear"),)
    assert matched.left_out == ("tail",) and matched.left_out_theirs == ("paw",)
    assert len(describe_unmatched(matched, what="keypoint")) == 3
    # Which of the two is meant nobody knows, but for the one that is equal.
    matched = match_names(("nose", "Nose"), ("nose", "NOSE"), what="keypoint")
    assert (matched.ours, matched.theirs, matched.respelled) == ((0,), (0,), ())


def test_two_names_that_could_be_meant_match_nothing():
    matched = match_names(("LEFT EAR", "NOSE"), ("left_ear", "left-ear", "nose"), what="keypoint")
    assert matched.respelled == (("NOSE", "nose"),) and matched.left_out == ("LEFT EAR",)
    assert "NOSE = nose" in describe_unmatched(matched, what="keypoint")[0]


def test_nothing_in_common_is_one_line_with_both():
    with pytest.raises(DataError, match="no class in common.*cat, dog.*cow\\\\nmoo") as raised:
        match_names(("cat", "dog"), ("cow\nmoo",), what="class")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="and 988 more"):
        match_names([str(number) for number in range(1000)], ("cow",), what="class")


def test_equal_lists_are_themselves():
    matched = match_names(("a", "b"), ("a", "b"), what="class")
    assert matched == ((0, 1), (0, 1), (), (), ()) and describe_unmatched(matched, what="class") == []
