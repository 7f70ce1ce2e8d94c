"""Which keypoints a mirror swaps, by the names that people give them."""

import pytest

from hardmine_jax.data.pose.sided_names import infer_flip_pairs, unpaired_names
from hardmine_jax.pose import Skeleton

FLY = "head thorax wingL wingR forelegL4 forelegR4 midlegL4 midlegR4 hindlegL4 hindlegR4 eyeL eyeR"


def pairs_of(text: str) -> set[tuple[str, str]]:
    names = text.split(" | ") if "|" in text else text.split()
    return {(names[left], names[right]) for left, right in infer_flip_pairs(names)}


@pytest.mark.parametrize(
    ("names", "unpaired"),
    [
        (FLY, "head thorax"),
        ("snout left_ear right_ear pawFL pawFR pawBL pawBR tail", "snout tail"),
        ("nose left_eye right_eye lsho rsho lank rank lelb relb lear rear", "nose"),
        ("kneeL_top kneeR_top paw2LF_top paw3RF_top paw1LH_top paw4RH_top", ""),
        ("LEFT_HAND RIGHT_HAND LEFTEYE RIGHTEYE LSHOULDER RSHOULDER", ""),
        ("Hand.L Hand.R Hand_L_end Hand_R_end hand-l-2 hand-r-2", ""),
        ("hand (left) | hand (right) | eye l | eye r | left front paw | right front paw", ""),
        ("leftPaw rightPaw pawLeft pawRight LAnkle RAnkle rElbow lElbow handLTip handRTip", ""),
        ("lf_paw rf_paw paw_fl paw_fr FL FR RL RR", ""),
        ("lbigtoe rbigtoe hindLpaw hindRpaw earl earr wristl wristr L1 R1", ""),
        ("left_eye_left right_eye_right left_eye_right right_eye_left rear_left rear_right rear", "rear"),
        ("lft_ear rgt_ear l r", ""),
    ],
)
def test_every_way_to_name_a_side_finds_its_partner(names, unpaired):
    listed = names.split(" | ") if "|" in names else names.split()
    pairs = infer_flip_pairs(listed)
    paired = {index for pair in pairs for index in pair}
    assert [name for i, name in enumerate(listed) if i not in paired] == unpaired.split()
    assert len(paired) == 2 * len(pairs)
    for left, right in pairs:
        a, b = (listed[i].lower().translate(str.maketrans("", "", "0123456789")) for i in (left, right))
        assert next(x for x, y in zip(a, b, strict=False) if x != y) == "l"
    # The order of the names decides nothing.
    turned = infer_flip_pairs(listed[::-1])
    last = len(listed) - 1
    assert {(last - left, last - right) for left, right in turned} == set(pairs)
    assert unpaired_names(listed, pairs) == ()


@pytest.mark.parametrize(
    "names",
    [
        "lip rip Lip2 Rip2 LIP RIP upperLip upperRip",
        "nose pose tail tair elbow erbow lump rump lib rib lung rung",
        "clown crown heal hear flank frank COLLAR CORRAR",
        "bright blight upright uplight cleft creft links rechts",
        "lower upper heel gill tail_lower skull",
    ],
)
def test_words_that_differ_in_a_letter_are_no_pair_and_have_no_side(names):
    assert pairs_of(names) == set() and unpaired_names(names.split(), ()) == ()


def test_what_looks_sided_and_has_no_partner_is_listed():
    names = ("nose", "earL", "earR", "pawR", "legL1", "legL2", "legR3", "legR4", "left_hip", "tail")
    pairs = infer_flip_pairs(names)
    assert pairs == ((1, 2),)
    assert unpaired_names(names, pairs) == ("pawR", "legL1", "legL2", "legR3", "legR4", "left_hip")


def test_ten_thousand_names_take_a_moment():
    names = [f"{side}_{number}" for side in ("left", "right") for number in range(5000)]
    pairs = infer_flip_pairs(names)
    assert pairs == tuple((number, number + 5000) for number in range(5000))
    assert Skeleton(tuple(names), pairs, (0.1,) * 10000, ()).flip_permutation[:2] == (5000, 5001)
