"""A run whose weights another one begins with: which of its keypoints are which of the new one's."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax

from hardmine_jax.data.problems import DataError
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import find_workdir
from hardmine_jax.tasks.names import match_names
from hardmine_jax.tasks.warm_start import Outputs, Places

# `number of keypoints -> (random key -> variables)`
InitFor = Callable[[int], Callable[[jax.Array], Mapping]]


def match_outputs(theirs: Skeleton, ours: Skeleton, init_for: InitFor) -> Outputs:
    """Where the outputs of a network for `theirs` go in one for `ours`: by name, whatever their order.

    Args:
      init_for: of the new network for so many keypoints; nothing is computed with it.
    """
    if theirs.names == ours.names:
        return Outputs()
    sources = dict.fromkeys(range(ours.num_keypoints), -1)
    respelled: tuple[tuple[str, str], ...] = ()
    with contextlib.suppress(DataError):
        matched = match_names(ours.names, theirs.names, what="keypoint")
        sources |= dict(zip(matched.ours, matched.theirs, strict=True))
        respelled = matched.respelled
    row = tuple(sources.values())
    places = {
        name: Places(axis, theirs.num_keypoints, row)
        for name, axis in keypoint_axes(init_for, ours.num_keypoints).items()
    }
    random = tuple(name for name, source in zip(ours.names, row, strict=True) if source < 0)
    spelled = f" ({', '.join(f'{one} = {other}' for one, other in respelled[:6])})" if respelled else ""
    found = f"{len(row) - len(random)} of {len(row)}"
    return Outputs(places, random, f"; keypoints taken over by name: {found}{spelled}")


def keypoint_axes(init_for: InitFor, num_keypoints: int) -> dict[str, int]:
    """For each weight of a network that depends on the number of keypoints, the axis that does.

    Found by what changes with one keypoint more, so that it needs to know no network.
    """
    shapes = [
        flax.traverse_util.flatten_dict(jax.eval_shape(init_for(count), jax.random.key(0)), sep=".")
        for count in (num_keypoints, num_keypoints + 1)
    ]
    axes = {}
    for name, leaf in shapes[0].items():
        more = shapes[1][name].shape
        differ = [axis for axis, pair in enumerate(zip(leaf.shape, more, strict=True)) if len({*pair}) > 1]
        if differ:
            axes[name] = differ[0]
    return axes


def read_names(
    path: pathlib.Path, load: Callable[[pathlib.Path], tuple[object, Skeleton]]
) -> Skeleton | None:
    """The skeleton of the run at a path; None where that is no run of this task.

    Args:
      load: of a workdir, `config.load_config`.
    """
    try:
        return load(find_workdir(path, script="hardmine pose train"))[1]
    except DataError:
        return None
