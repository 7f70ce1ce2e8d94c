"""Which keypoints change places in a mirror, by their names.

A side is `left` or `right`, `lft` or `rgt`, or one letter: alone between signs (`hip.l`), a capital where a
word of camel case ends or begins (`earR`, `forelegL4`, `LAnkle`, `pawFL`), in a word of two letters
(`fl_paw`), or right before the beginning of a body part (`lank`) or after a whole one (`earr`). Two names are
a pair where one becomes the other by changing its sides; a letter that only might be a side, as in `lip`, is
none.
"""

import re
from collections.abc import Iterator, Sequence

_OTHER = {"left": "right", "lft": "rgt", "lhs": "rhs", "l": "r"}
_OTHER |= {right: left for left, right in _OTHER.items()}
# Names as they are abbreviated begin with three letters of one of these, or are one.
_PARTS = """
    ankle antenna arm back big breast brow calf cheek claw clavicle collar corner digit ear elbow eye
    eyebrow face femur fetlock fin finger flank foot feet fore front gill hand haltere heel hind hip
    hock hoof humerus index inner iris jaw knee knuckle leg limb lower mcp middle mouth nipple nostril
    outer palm paw pelvis pinky pupil radius ring scapula shldr shin shoulder small stifle tarsus temple
    thigh thumb tibia toe ulna upper whisker wing withers wrist
""".split()
_PART = "|".join(sorted({part[:3] for part in _PARTS}))
# Not those of bright, upright and cleft.
_WORD = r"(?i:(?<!b)(?<!up)right|(?<!c)left|(?<![a-z])(?:lft|rgt|lhs|rhs)(?![a-z]))|Right|Left"
_LETTER = "|".join(
    (
        # Alone, or beside one other letter: L, hip_l, 4R, fl_paw.
        r"(?i:(?<![a-z])[lr](?![a-z]))",
        r"(?i:(?<![a-z])[lr](?=[a-z](?![a-z])))|(?i:(?<=(?<![a-z])[a-z])[lr](?![a-z]))",
        # earR, forelegL4, handLTip; pawFL, paw2LF: beside one or two other capitals.
        r"(?<=[a-z0-9])[LR](?![a-z])|(?<=[a-z0-9][A-Z])[LR](?![a-zA-Z])|(?<=[a-z0-9][A-Z]{2})[LR](?![a-zA-Z])",
        # LAnkle, front_LPaw; hindLpaw.
        rf"(?<![a-zA-Z])[LR](?=[A-Z][a-z])|(?<=[a-z])[LR](?=(?i:{_PART}))",
        # lank, LSHOULDER, but no rear, which is a back; earr, HIPL.
        rf"(?<![a-zA-Z])(?!(?i:rear))[lrLR](?=(?i:{_PART}))",
        *(rf"(?i:(?<={part})[lr](?![a-z]))" for part in _PARTS),
    )
)
_SIDE = re.compile(f"{_WORD}|{_LETTER}")


def infer_flip_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs (left, right) of names that differ in their sides alone, in any case, ordered by the left.

    A name with several sides has its partner where all change (`left_eye_left` and `right_eye_right`), else
    where one does (`pawRL` and `pawRR`). Names that have no partner then may differ in their numbers, too
    (`paw2LF` and `paw3RF`), if just one fits.

    >>> infer_flip_pairs(("nose", "left_ear", "right_ear", "PawR", "l-hip", "r-hip", "leftmost"))
    ((1, 2), (4, 5))
    >>> infer_flip_pairs(("RAnkle", "LAnkle", "earL", "earR", "Nose", "lip", "rip"))
    ((1, 0), (2, 3))
    """
    partner: dict[int, int] = {}
    for whole in (True, False):
        for numbered in (True, False):
            _match(names, partner, whole=whole, numbered=numbered)
    return tuple((i, j) for i, j in sorted(partner.items()) if _is_left(names[i], names[j]))


def unpaired_names(names: Sequence[str], flip_pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Names that have a side and stand in no pair.

    >>> unpaired_names(("nose", "earL", "earR", "pawR", "tail"), [(1, 2)])
    ('pawR',)
    """
    paired = {index for pair in flip_pairs for index in pair}
    return tuple(name for i, name in enumerate(names) if i not in paired and _SIDE.search(name))


def _match(names: Sequence[str], partner: dict[int, int], *, whole: bool, numbered: bool) -> None:
    """Adds those to `partner`, both ways, who have just one."""

    def key(name: str) -> str:
        return name.casefold() if numbered else _unnumbered(name)

    free: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if i not in partner:
            free.setdefault(key(name), []).append(i)
    for i, name in enumerate(names):
        if i in partner or len(free[key(name)]) > 1:
            continue
        for mirrored in _mirrored(name, whole=whole):
            found = free.get(key(mirrored), [])
            if len(found) == 1 and found[0] != i and found[0] not in partner:
                partner[i], partner[found[0]] = found[0], i
                break


def _mirrored(name: str, *, whole: bool) -> Iterator[str]:
    """The name with all sides changed, or with one of several."""
    sides = list(_SIDE.finditer(name))
    if whole and sides:
        yield _SIDE.sub(lambda side: _OTHER[side[0].lower()], name)
    elif len(sides) > 1:
        for side in sides:
            yield name[: side.start()] + _OTHER[side[0].lower()] + name[side.end() :]


def _is_left(name: str, other: str) -> bool:
    """By the first letter in which the two differ."""
    letters = zip(_unnumbered(name), _unnumbered(other), strict=False)
    return next((one for one, beside in letters if one != beside), "") == "l"


def _unnumbered(name: str) -> str:
    return re.sub(r"[0-9]+", "0", name.casefold())
