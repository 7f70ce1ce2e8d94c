"""The pool of backgrounds: who is in it, how it grows, and that it survives a restart."""

import json

import numpy as np
import pytest

from hardmine_jax.data.problems import DataError
from hardmine_jax.job.json_state import decode_json, encode_json
from hardmine_jax.tasks.detection.bootstrap import (
    PooledBatches,
    first_pool,
    grow_pool,
    read_rounds,
    round_ends,
)

P = 10


class _Batches:
    """Images 0 and 2, again and again."""

    unreadable = frozenset({7})

    def __init__(self):
        self.position = 0

    def __next__(self):
        self.position += 1
        return {"index": np.array([0, 2], np.int32)}

    def get_state(self):
        return {"batches": self.position}

    def set_state(self, state):
        self.position = state["batches"]

    def close(self):
        self.position = -1


def _members(batches) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in next(batches)["pool"]]


def test_the_first_pool_has_so_many_of_each_image():
    pool = first_pool([4, 0, 20], an_image=6, max_proposals=P, seed=3)
    batches = PooledBatches(_Batches(), pool, max_proposals=P)
    first, third = _members(batches)
    # All of the 4 there are, and 6 of the first 10 of 20.
    assert first == [0, 1, 2, 3] and len(third) == 6 and max(third) < P
    assert len(pool.negatives.indices) == 2 * 6 * 3
    again = first_pool([4, 0, 20], an_image=6, max_proposals=P, seed=3)
    np.testing.assert_array_equal(pool.negatives.indices, again.negatives.indices)
    assert batches.unreadable == {7}


def test_no_proposal_anywhere_is_an_empty_pool():
    pool = first_pool([0, 0, 0], an_image=6, max_proposals=P, seed=0)
    assert _members(PooledBatches(_Batches(), pool, max_proposals=P)) == [[], []]


def test_false_positives_come_in_and_push_out_what_was_drawn():
    pool = first_pool([P, P, P], an_image=2, max_proposals=P, seed=0)
    outputs = {
        "slots": np.array([[4, 5, 6], [7, 8, 9], [1, 2, 3]], np.int32),
        "scores": np.array([[0.9, 0.8, 0.05], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]], np.float32),
        "where": np.array([[True, True, True], [True, False, False], [True, True, True]]),
    }
    batch = {"index": np.array([0, 2, -1]), "where": np.array([True, True, False])}
    grown, found = grow_pool(pool, lambda _: outputs, [batch], max_proposals=P)
    # One score is too low, two slots and the last image are padding.
    assert found["false_positives"] == 3 and found["members"] == len(
        {*np.asarray(pool.negatives.indices)[:6].tolist(), 4, 5, 27}
    )
    np.testing.assert_array_equal(np.asarray(grown.negatives.indices)[:3], [4, 27, 5])
    many = {**outputs, "scores": np.full((3, 3), 0.5, np.float32), "where": np.ones((3, 3), bool)}
    batches = [{"index": np.arange(3), "where": np.ones(3, bool)}]
    for shift in range(3):
        shifted = {**many, "slots": (many["slots"] + 3 * shift) % P}
        grown, found = grow_pool(grown, lambda _, s=shifted: s, batches, max_proposals=P)
    assert found["members"] == 12 and (np.asarray(grown.negatives.scores) >= 0.5).all()


def test_the_position_holds_the_pool():
    pool = first_pool([P, P, P], an_image=4, max_proposals=P, seed=1)
    batches = PooledBatches(_Batches(), pool, max_proposals=P)
    batches.set_pool(pool, number=2)
    members = _members(batches)
    state = decode_json(json.loads(json.dumps(encode_json(batches.get_state()))))
    empty = first_pool([0, 0, 0], an_image=4, max_proposals=P, seed=1)
    other = PooledBatches(_Batches(), empty, max_proposals=P)
    other.set_state(state)
    assert other.number == 2 and other.get_state()["batches"] == 1
    assert _members(other) == members


@pytest.mark.parametrize("steps, rounds", [(7, 3), (100, 1), (4, 4)])
def test_rounds_fill_the_budget(steps, rounds):
    ends = round_ends(steps, rounds)
    assert ends[-1] == steps and len(ends) == rounds and (np.diff([0, *ends]) >= 1).all()


@pytest.mark.parametrize("content", ["{", "3", "[1]", "[" * 100_000])
def test_damaged_rounds_are_one_line(content, tmp_path):
    assert read_rounds(tmp_path) == []
    (tmp_path / "rounds.json").write_text('[{"round": 2}]')
    assert read_rounds(tmp_path) == [{"round": 2}]
    (tmp_path / "rounds.json").write_text(content)
    with pytest.raises(DataError, match="rounds.json is damaged"):
        read_rounds(tmp_path)
