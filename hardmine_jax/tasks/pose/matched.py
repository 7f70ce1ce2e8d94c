"""A dataset seen through a run's eyes: the keypoints that both have, by name, in the run's order.

Everything that is scored is in that order and has these keypoints alone, so that boxes, OKS and means are
over them; sigmas are the dataset's.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.data.records import Records
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.names import Matched
from hardmine_jax.tasks.pose.protocol import Protocol


def common_skeleton(run: Skeleton, dataset: Skeleton, matched: Matched) -> Skeleton:
    """The keypoints that both have: names, order, pairs and edges of the run, sigmas of the dataset."""
    places = {ours: place for place, ours in enumerate(matched.ours)}

    def among(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple((places[a], places[b]) for a, b in pairs if a in places and b in places)

    return Skeleton(
        tuple(run.names[place] for place in matched.ours),
        among(run.flip_pairs),
        tuple(dataset.sigmas[place] for place in matched.theirs),
        among(run.edges),
    )


class MatchedPeople:
    """The records of a source with the keypoints that both have."""

    def __init__(self, source: Records, matched: Matched):
        self._source, self._places = source, list(matched.theirs)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        kept = {name: record[name][self._places] for name in ("keypoints", "visibility")}
        return {**record, **kept}


def matched_predict(
    predict: Callable[[dict, jax.Array], dict[str, jax.Array]], matched: Matched
) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """`(variables, batch) -> keypoints and scores` of the keypoints that both have."""
    places = np.array(matched.ours)

    def predict_common(variables: dict, batch: dict) -> dict[str, jax.Array]:
        found = predict(variables, batch["image"])
        if not matched.left_out:
            return found
        return {name: jnp.take(array, places, axis=1) for name, array in found.items()}

    return predict_common


def in_dataset_order(predicted: np.ndarray, matched: Matched, num_keypoints: int) -> np.ndarray:
    """[N, K common, ...] as [N, num_keypoints, ...] in the dataset's order; 0 where the run has none.

    >>> matched = Matched(ours=(0, 2), theirs=(2, 0), left_out=("tail",), left_out_theirs=("paw",))
    >>> in_dataset_order(np.array([[0.5, 0.75]]), matched, 3)
    array([[0.75, 0.  , 0.5 ]])
    """
    whole = np.zeros((len(predicted), num_keypoints, *predicted.shape[2:]), predicted.dtype)
    whole[:, list(matched.theirs)] = predicted
    return whole


def matched_protocol(protocol: Protocol, matched: Matched) -> Protocol:
    """The boxes and COCO annotations with the keypoints that both have."""
    if protocol.boxes is None:
        return protocol
    boxes = dataclasses.replace(protocol.boxes, num_keypoints=len(matched.ours))
    annotations = tuple(_matched_annotation(entry, matched) for entry in protocol.annotations)
    return protocol._replace(boxes=boxes, annotations=annotations)


def _matched_annotation(entry: dict, matched: Matched) -> dict:
    triples = np.reshape(entry["keypoints"], (-1, 3))[list(matched.theirs)]
    entry = {**entry, "keypoints": triples.ravel().tolist()}
    if matched.left_out_theirs:
        # By COCO's rules somebody without a labelled keypoint excuses what is found on them.
        entry["num_keypoints"] = min(entry["num_keypoints"], int((triples[:, 2] > 0).sum()))
    return entry
