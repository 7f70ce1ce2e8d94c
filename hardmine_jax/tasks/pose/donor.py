"""A run whose weights another one begins with: which of its keypoints are which of the new one's."""

from collections.abc import Callable, Mapping

import flax.traverse_util
import jax

from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.names import sources_by_name
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
    found = sources_by_name(ours.names, theirs.names, what="keypoint")
    places = {
        name: Places(axis, theirs.num_keypoints, found.row)
        for name, axis in keypoint_axes(init_for, ours.num_keypoints).items()
    }
    pairs = ", ".join(f"{one} = {other}" for one, other in found.respelled[:6])
    told = f"; keypoints taken over by name: {found.told}{f' ({pairs})' if pairs else ''}"
    return Outputs(places, found.random, told)


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
