"""A run that goes on with its data as it is now: are the keypoints those that it was trained on?"""

from collections.abc import Sequence

from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import printable
from hardmine_jax.job import exchange
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.flags import warn_of
from hardmine_jax.tasks.names import check_same_names
from hardmine_jax.tasks.pose.config import load_categories, load_config
from hardmine_jax.tasks.run import goes_on
from hardmine_jax.tasks.run_config import RunConfig


def check_trained_on(run: RunConfig, dataset: PoseDataset) -> None:
    """Compares what a run was trained on with its data now; what is odd but does no harm is a line on stderr.

    Raises:
      DataError: other keypoints, or the same in another order: weights would get another keypoint's name.
    """
    exchange.from_main(lambda: _check(run, dataset), "trained on")


def _check(run: RunConfig, dataset: PoseDataset) -> None:
    if not goes_on(run):
        return
    trained = load_config(run.folder)[1]
    if trained.num_keypoints != dataset.skeleton.num_keypoints:
        # Another network: restoring tells which weights differ.
        return
    notes = check_same_names(trained.names, dataset.skeleton.names, what="keypoint", run=run.folder)
    notes += skeleton_changes(trained, dataset.skeleton)
    notes += category_changes(load_categories(run.folder), dataset.categories)
    warn_of(notes)


def skeleton_changes(before: Skeleton, now: Skeleton) -> list[str]:
    """What differs between two skeletons of the same keypoints, beside lines that are only drawn.

    >>> before = Skeleton(("left", "right"), (), (0.1, 0.1), ())
    >>> skeleton_changes(before, Skeleton(("left", "right"), ((0, 1),), (0.1, 0.2), ()))
    ['until here the run was trained with sigmas right 0.1, now right 0.2', 'until here the run was trained
    with flip pairs none, now left/right']
    """
    notes = []
    differ = [
        place for place, pair in enumerate(zip(before.sigmas, now.sigmas, strict=True)) if len({*pair}) > 1
    ]
    if differ:
        notes.append(f"sigmas {_sigmas(before, differ)}, now {_sigmas(now, differ)}")
    pairs = [{frozenset(pair) for pair in skeleton.flip_pairs} for skeleton in (before, now)]
    if pairs[0] != pairs[1]:
        notes.append(f"flip pairs {_pairs(before)}, now {_pairs(now)}")
    return [f"until here the run was trained with {note}" for note in notes]


def category_changes(before: Sequence[Category], now: Sequence[Category]) -> list[str]:
    """What differs between the categories of an annotation file then and now; nothing where one is not known.

    >>> category_changes([Category(1, "mouse")], [Category(2, "mouse")])
    ['until here the run was trained on category mouse (id 1), now mouse (id 2)']
    """
    if not before or not now or set(before) == set(now):
        return []
    was, here = (", ".join(f"{printable(one.name)} (id {one.id})" for one in each) for each in (before, now))
    return [f"until here the run was trained on category {was}, now {here}"]


def _sigmas(skeleton: Skeleton, places: Sequence[int]) -> str:
    return _some([f"{skeleton.names[place]} {skeleton.sigmas[place]:g}" for place in places])


def _pairs(skeleton: Skeleton) -> str:
    return _some(["/".join(skeleton.names[end] for end in pair) for pair in skeleton.flip_pairs]) or "none"


def _some(parts: Sequence[str]) -> str:
    return ", ".join(map(printable, parts[:6])) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")
