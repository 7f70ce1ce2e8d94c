"""Names of keypoints or classes, matched: what a run was trained on against what a dataset has.

Order and numbers mean nothing here, names alone do.
"""

import contextlib
import pathlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hardmine_jax.data.problems import DataError, printable

_SHOWN = 12


class Matched(NamedTuple):
    """What two lists of names have in common, in the order of the first.

    Attributes:
      ours, theirs: for each common name its places in the two lists.
      left_out: names of the first list alone; left_out_theirs: of the second alone.
      respelled: (first list's, second list's) of names that are equal but for their spelling.
    """

    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    left_out: tuple[str, ...] = ()
    left_out_theirs: tuple[str, ...] = ()
    respelled: tuple[tuple[str, str], ...] = ()


def match_names(ours: Sequence[str], theirs: Sequence[str], *, what: str) -> Matched:
    """The names that are in both lists, each different within its list.

    Equal names match. So do, of the others, those that differ in capitals, spaces, underscores and hyphens
    alone; not where a list has two such.

    Args:
      ours: of a run; theirs: of a dataset; what: they name, for the error ("keypoint", "class").

    Raises:
      DataError: nothing in common.

    >>> match_names(("nose", "tail", "ear"), ("ear", "paw", "nose"), what="keypoint")
    Matched(ours=(0, 2), theirs=(2, 0), left_out=('tail',), left_out_theirs=('paw',), respelled=())
    >>> match_names(("left_ear", "nose"), ("Nose", "Left Ear"), what="keypoint").respelled
    (('left_ear', 'Left Ear'), ('nose', 'Nose'))
    """
    equal = _pairs(ours, theirs)
    alike = _pairs(*([_folded(name) for name in names] for names in (ours, theirs)))
    pairs = sorted({*equal, *alike})
    respelled = tuple((ours[one], theirs[other]) for one, other in pairs if (one, other) not in equal)
    if not pairs:
        raise DataError(
            f"no {what} in common: the run was trained on {_listed(ours)}; the data has {_listed(theirs)}"
        )
    first, second = zip(*pairs, strict=True)
    return Matched(
        first,
        second,
        tuple(name for place, name in enumerate(ours) if place not in first),
        tuple(name for place, name in enumerate(theirs) if place not in second),
        respelled,
    )


class Sources(NamedTuple):
    """Which outputs of another network are ours.

    Attributes:
      row: for each of our names its place among theirs; -1: they have none such.
      random: our names that they do not have.
      told: how many were found, for a line.
      respelled: as in `Matched`.
    """

    row: tuple[int, ...]
    random: tuple[str, ...]
    told: str
    respelled: tuple[tuple[str, str], ...]


def sources_by_name(ours: Sequence[str], theirs: Sequence[str], *, what: str) -> Sources:
    """As `match_names`, for each of ours; nothing in common is no error.

    >>> sources_by_name(("cat", "cow"), ("dog", "cat"), what="class")
    Sources(row=(1, -1), random=('cow',), told='1 of 2', respelled=())
    """
    found = dict.fromkeys(range(len(ours)), -1)
    respelled: tuple[tuple[str, str], ...] = ()
    with contextlib.suppress(DataError):
        matched = match_names(ours, theirs, what=what)
        found |= dict(zip(matched.ours, matched.theirs, strict=True))
        respelled = matched.respelled
    row = tuple(found.values())
    random = tuple(name for name, source in zip(ours, row, strict=True) if source < 0)
    return Sources(row, random, f"{len(row) - len(random)} of {len(row)}", respelled)


def describe_unmatched(matched: Matched, *, what: str) -> list[str]:
    """Sentences about what is not matched name by name; none where all is.

    >>> describe_unmatched(match_names(("cat", "dog"), ("dog", "cow"), what="class"), what="class")
    ['not scored, since the data does not have them: class cat', 'not scored, since the run was not trained
    on them: class cow']
    """
    said = []
    if matched.respelled:
        pairs = [f"{one} = {other}" for one, other in matched.respelled]
        said.append(f"{what} matched but for capitals and spaces: {_listed(pairs)}")
    if matched.left_out:
        said.append(f"not scored, since the data does not have them: {what} {_listed(matched.left_out)}")
    if matched.left_out_theirs:
        said.append(
            f"not scored, since the run was not trained on them: {what} {_listed(matched.left_out_theirs)}"
        )
    return said


def check_same_names(
    trained: Sequence[str], data: Sequence[str], *, what: str, run: pathlib.Path
) -> list[str]:
    """Whether a run can go on with data, whose names stand for the network's outputs one by one.

    Args:
      trained: names that the run was trained on, in the order of its outputs; data: names that its data has
        now; what: they name; run: its folder, for the error.

    Returns:
      A note where names differ in their spelling alone (see `match_names`); none where nothing differs.

    Raises:
      DataError: other names, or the same in another order.

    >>> check_same_names(("nose", "left_ear"), ("nose", "Left Ear"), what="keypoint", run=pathlib.Path("run"))
    ['run was trained with other spellings: keypoint left_ear = Left Ear']
    """
    if tuple(trained) == tuple(data):
        return []
    folded = [[_folded(name) for name in names] for names in (trained, data)]
    if folded[0] == folded[1] and len({*folded[0]}) == len(trained):
        pairs = [f"{one} = {other}" for one, other in zip(trained, data, strict=True) if one != other]
        return [f"{printable(str(run))} was trained with other spellings: {what} {_listed(pairs)}"]
    was, now = _apart(trained, data)
    order = " in another order" if sorted(folded[0]) == sorted(folded[1]) else ""
    raise DataError(
        f"{run} was trained on the {what} names {was}, and its data now has {now}{order}: an output of the "
        "network would get another's name. Give the data that the run was trained on, or another --workdir "
        "(--init-from takes weights over by name); hardmine's command evaluate scores a run on other data, "
        "by name"
    )


def _apart(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Both lists as text, so short that one sees where they differ."""
    equal = [one == other for one, other in zip(ours, theirs, strict=False)]
    alike = equal.index(False) if False in equal else len(equal)
    if max(len(ours), len(theirs)) <= _SHOWN:
        alike = 0
    after = f" after the first {alike}" if alike else ""
    return [(_listed(names[alike:]) or "none") + after for names in (ours, theirs)]


def _pairs(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Places of the names that are in both, once in each."""
    once = [{name for name, times in Counter(names).items() if times == 1} for names in (ours, theirs)]
    common = once[0] & once[1]
    places = {name: place for place, name in enumerate(theirs)}
    return [(place, places[name]) for place, name in enumerate(ours) if name in common]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
