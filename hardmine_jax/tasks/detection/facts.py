"""What a detector's report says of its data."""

from collections.abc import Sequence

import numpy as np

from hardmine_jax.data.detection.records import DetectionSource
from hardmine_jax.tasks.detection.evaluation import Evaluated, map_half_width
from hardmine_jax.tasks.facts import count
from hardmine_jax.tasks.uncertainty import FEW, note_few


def count_objects(source: DetectionSource) -> str:
    """How many there are in a split, and on how many images."""
    return f"{count(int(source.objects_per_image.sum()), 'object')} on {count(len(source), 'image')}"


def count_scored(evaluated: Evaluated) -> str:
    """The same of those that were scored, without the difficult ones."""
    objects = sum(int((~np.asarray(truth.difficult, bool)).sum()) for truth in evaluated.truth)
    return f"{count(objects, 'object')} on {count(len(evaluated.names), 'image')}"


def note_few_images(evaluated: Evaluated, classes: Sequence[str]) -> list[str]:
    """The sentence of `uncertainty.note_few`, where there is one; also printed."""
    images = len(evaluated.names)
    if images >= FEW:
        return []
    notes = note_few(images, "images", "mAP@0.5", map_half_width(evaluated, classes))
    for note in notes:
        print(f"careful: {note}")
    return notes
