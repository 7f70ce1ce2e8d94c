"""What a pose report says of its data."""

from typing import Any

import numpy as np

from hardmine_jax.data.records import Records
from hardmine_jax.tasks.facts import count
from hardmine_jax.tasks.pose.people import People
from hardmine_jax.tasks.pose.score import pck_half_width
from hardmine_jax.tasks.uncertainty import note_few


def category_names(config: Any, dataset: Any) -> list[str]:
    """Of what the keypoints are, as the file says or the flag; nothing where neither does."""
    known = [one.name for one in getattr(dataset, "categories", ())]
    return known or ([str(config.category)] if config.category else [])


def count_people(source: Records) -> str:
    """How many there are in a split, and on how many images where the source knows that."""
    images = getattr(source, "num_images", None)
    return count(len(source), "subject") + ("" if images is None else f" on {count(images, 'image')}")


def count_scored(people: People) -> str:
    """The same of those that were scored, and how many keypoints they have."""
    images, keypoints = len(np.unique(people.image_id)), int(people.labelled.sum())
    return f"{count(len(people.names), 'subject')} on {count(images, 'image')}, {keypoints:,} keypoints"


def note_few_people(predicted: np.ndarray, people: People) -> list[str]:
    """The sentence of `uncertainty.note_few`, where there is one; also printed."""
    subjects = int(people.labelled.any(1).sum())
    notes = note_few(subjects, "subjects", "PCK@0.1", pck_half_width(predicted, people))
    for note in notes:
        print(f"careful: {note}")
    return notes
