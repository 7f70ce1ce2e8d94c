import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardmine_jax.mining import hard_pool


def _rows(ranked) -> list[tuple[int, float, int]]:
    listed = zip(*(np.asarray(field).tolist() for field in ranked), strict=True)
    return [row for row in listed if row[0] >= 0]


class _Oracle:
    """The same pool as two dictionaries index -> (score, age)."""

    def __init__(self, capacity, num_positives):
        self.slots = (capacity, num_positives)
        self.kinds = ({}, {})

    def update(self, indices, scores, positive, where, decay, max_age, min_score):
        negatives, positives = self.kinds
        for index, (score, age) in list(negatives.items()):
            score = np.float32(score * decay if score > 0 else score / decay)
            negatives[index] = (score, age + 1)
            if age + 1 > max_age or score <= min_score:
                del negatives[index]
        for index, (score, age) in positives.items():
            positives[index] = (score, age + 1)
        for index, score, is_positive, takes_part in zip(indices, scores, positive, where, strict=True):
            if takes_part and index >= 0:
                negatives.pop(index, None)
                positives.pop(index, None)
                if is_positive or not score <= min_score:
                    self.kinds[int(is_positive)][index] = (score, 0)
        self.kinds = tuple(
            {index: entry for index, *entry in self.rows(kind)[: self.slots[kind]]} for kind in (0, 1)
        )

    def rows(self, kind):
        entries = [(index, score, age) for index, (score, age) in self.kinds[kind].items()]
        hardness = {index: np.inf if np.isnan(score) else score for index, score, _ in entries}
        return sorted(entries, key=lambda row: (not np.isnan(row[1]), -hardness[row[0]], row[0]))


@functools.partial(jax.jit, static_argnames=("max_age",))
def _update(pool, indices, scores, positive, where, decay, max_age, min_score):
    return hard_pool.update(
        pool,
        indices,
        scores,
        positive=positive,
        where=where,
        decay=decay,
        max_age=max_age,
        min_score=min_score,
    )


SCORES = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5, 1.0, 2.0, -1.0, -0.5, np.inf, -np.inf, np.nan])
SEEN = st.tuples(st.integers(-1, 6), SCORES, st.booleans(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    updates=st.lists(st.lists(SEEN, min_size=5, max_size=5), min_size=1, max_size=6),
    decay=st.sampled_from([1.0, 0.5]),
)
def test_is_the_pool_written_with_dictionaries(updates, decay):
    pool, oracle = hard_pool.init(4, num_positives=3), _Oracle(4, 3)
    for seen in updates:
        indices, scores, positive, where = (np.array(column) for column in zip(*seen, strict=True))
        args = indices, scores.astype(np.float32), positive, where, decay, 2, np.float32(-0.75)
        pool = _update(pool, *args)
        oracle.update(*args)
        for ranked, kind in ((pool.negatives, 0), (pool.positives, 1)):
            np.testing.assert_array_equal(_rows(ranked), oracle.rows(kind))
            chex.assert_type([*ranked], [jnp.int32, jnp.float32, jnp.int32])
            free = np.asarray(ranked.indices) < 0
            assert not free[: len(_rows(ranked))].any()
            assert (np.asarray(ranked.scores)[free] == -np.inf).all()


UPDATE = jax.jit(hard_pool.update)


def test_equal_scores_stay_by_the_lowest_index_whatever_the_order():
    for order in ([5, 2, 9, 4], [9, 5, 4, 2]):
        pool = UPDATE(hard_pool.init(3), jnp.array(order), jnp.ones(4))
        np.testing.assert_array_equal(pool.negatives.indices, [2, 4, 5])


def test_the_later_of_two_entries_of_one_batch_counts():
    pool = UPDATE(hard_pool.init(3), jnp.array([5, 5, 2]), jnp.array([9.0, 1.0, 2.0]))
    assert _rows(pool.negatives) == [(2, 2.0, 0), (5, 1.0, 0)]


def test_an_example_that_changed_sides_is_nowhere_twice():
    pool = hard_pool.init(3, num_positives=2)
    pool = UPDATE(pool, jnp.array([5, 6]), jnp.ones(2), positive=jnp.array([False, True]))
    pool = UPDATE(pool, jnp.array([5, 6]), jnp.ones(2), positive=jnp.array([True, False]))
    assert (_rows(pool.negatives), _rows(pool.positives)) == ([(6, 1.0, 0)], [(5, 1.0, 0)])


def test_positives_are_kept_aside():
    pool = UPDATE(
        hard_pool.init(2, num_positives=2),
        jnp.array([1, 2]),
        jnp.array([0.1, 0.0]),
        positive=jnp.ones(2, bool),
    )
    for index in range(10, 16):
        pool = UPDATE(pool, jnp.array([index]), jnp.ones(1), decay=0.5, max_age=1, min_score=0.6)
    assert [row[:2] for row in _rows(pool.positives)] == [(1, np.float32(0.1)), (2, 0.0)]
    assert [row[0] for row in _rows(pool.negatives)] == [15]


def test_positives_grow_older_until_they_are_seen_again_the_example_0_too():
    pool, one = hard_pool.init(1, num_positives=3), jnp.ones(1)
    for index in (0, 5, 0, 6):
        pool = UPDATE(pool, jnp.array([index]), one, positive=jnp.ones(1, bool))
    assert _rows(pool.positives) == [(0, 1.0, 1), (5, 1.0, 2), (6, 1.0, 0)]


def test_a_free_slot_has_no_age():
    pool = hard_pool.init(2, num_positives=2)
    for _ in range(3):
        pool = UPDATE(pool, jnp.array([1, 2]), jnp.ones(2), positive=jnp.array([True, False]))
    assert pool.positives.ages.tolist() == pool.negatives.ages.tolist() == [0, 0]


@pytest.mark.parametrize("score", [1.0, 0.0, -1.0])
def test_ageing_never_ranks_higher(score):
    pool = UPDATE(hard_pool.init(2), jnp.array([1]), jnp.array([score]))
    pool = UPDATE(pool, jnp.array([8]), jnp.array([score]), decay=0.9)
    assert _rows(pool.negatives)[score == 0.0][0] == 8


def test_nothing_seen_ages_only():
    pool = UPDATE(hard_pool.init(2), jnp.array([4, 0]), jnp.array([1.0, 0.5]))
    for nothing in ((jnp.zeros(0, jnp.int32), jnp.zeros(0)), (-jnp.ones(2, jnp.int32), jnp.ones(2))):
        assert _rows(UPDATE(pool, *nothing, decay=0.5).negatives) == [(4, 0.5, 1), (0, 0.25, 1)]


def test_a_draw_has_no_example_twice_and_comes_from_the_pool():
    pool = hard_pool.init(8, num_positives=4)
    pool = UPDATE(pool, jnp.arange(9), jnp.arange(9.0), positive=jnp.arange(9) < 3)
    draw = jax.jit(functools.partial(hard_pool.sample, num_negatives=5, num_positives=4))
    drawn = draw(pool, jax.random.key(0))
    np.testing.assert_array_equal(drawn.positive, [True] * 4 + [False] * 5)
    np.testing.assert_array_equal(drawn.where, [True] * 3 + [False] + [True] * 5)
    assert set(drawn.indices[:4].tolist()) == {0, 1, 2, -1}
    negatives = drawn.indices[4:].tolist()
    assert len(set(negatives)) == 5 and set(negatives) <= set(range(3, 9))


def test_draws_are_uniform_and_decided_by_the_key():
    pool = UPDATE(hard_pool.init(6), jnp.arange(4), jnp.array([9.0, 5.0, 1.0, 0.0]))
    draw = functools.partial(hard_pool.sample, pool, num_negatives=2)
    chex.assert_trees_all_equal(draw(jax.random.key(3)), draw(jax.random.key(3)))
    many = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)).indices
    counts = np.bincount(np.asarray(many).reshape(-1), minlength=4)
    # Each is in half of the draws; six standard deviations.
    np.testing.assert_allclose(counts / 4000, 0.5, atol=6 * 0.5 / np.sqrt(4000))


def test_positives_and_negatives_are_drawn_apart():
    pool = UPDATE(hard_pool.init(9, num_positives=9), jnp.arange(9), jnp.arange(9.0))
    pool = UPDATE(pool, jnp.arange(10, 19), jnp.arange(9.0), positive=jnp.ones(9, bool))
    drawn = hard_pool.sample(pool, jax.random.key(0), num_negatives=9, num_positives=9).indices
    assert (drawn[:9] - 10 != drawn[9:]).any()


def test_the_same_updates_make_the_same_pool_and_one_program():
    pool = hard_pool.init(4, num_positives=3)
    step = jax.jit(functools.partial(hard_pool.update, decay=0.9))
    for _ in range(3):
        pool = step(pool, jnp.arange(3), jnp.ones(3))
    assert step._cache_size() == 1


@pytest.mark.parametrize("num_positives", [0, 2])
def test_goes_through_a_checkpoint_and_on_to_the_same_bits(tmp_path, num_positives):
    from hardmine_jax.training.checkpoint import Checkpoints
    from hardmine_jax.training.state import create_state

    def state(pool):
        variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {"hard_pool": pool}}
        return create_state(variables, apply_fn=None, optimizer=optax.sgd(0.1), key=jax.random.key(0))

    empty = hard_pool.init(3, num_positives=num_positives)
    pool = UPDATE(empty, jnp.arange(5), jnp.arange(5.0))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(pool))
    checkpoints.wait()
    restored = checkpoints.restore_latest(state(empty)).state.batch_stats["hard_pool"]
    after = [UPDATE(each, jnp.array([7]), jnp.array([3.5]), decay=0.9) for each in (pool, restored)]
    chex.assert_trees_all_equal(*after)
    draws = [hard_pool.sample(each, jax.random.key(1), num_negatives=2) for each in after]
    chex.assert_trees_all_equal(*draws)


def test_plain_lists_and_other_types_of_numbers_do():
    expected = UPDATE(hard_pool.init(2), jnp.array([7, 3, 9]), jnp.array([5.0, 1.0, 9.0])).negatives
    seen = [7, 3, 9], [5, 1, 9], [False] * 3
    pool = hard_pool.init(2, num_positives=1)
    found = hard_pool.update(pool, *seen[:2], positive=seen[2], where=[True] * 3)
    chex.assert_trees_all_equal(found.negatives, expected)
    with jax.numpy_dtype_promotion("strict"):
        found = hard_pool.update(pool, jnp.uint8([7, 3, 9]), jnp.bfloat16([5, 1, 9]))
    chex.assert_trees_all_equal(found.negatives, expected)


def test_no_gradient_flows_into_the_pool():
    gradient = jax.grad(
        lambda s: hard_pool.update(hard_pool.init(2), jnp.arange(2), s).negatives.scores.sum()
    )
    np.testing.assert_array_equal(gradient(jnp.array([1.0, 2.0])), np.zeros(2))


def test_wrong_numbers_and_shapes_are_named():
    pool = hard_pool.init(3)
    with pytest.raises(ValueError, match="capacity=0, num_positives=0"):
        hard_pool.init(0)
    with pytest.raises(ValueError, match="num_positives=-1"):
        hard_pool.init(3, num_positives=-1)
    with pytest.raises(TypeError, match="indices of float32"):
        hard_pool.update(pool, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"\[B\] alike, not \(2,\), \(3,\)"):
        hard_pool.update(pool, jnp.arange(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="without slots for positives"):
        hard_pool.update(pool, jnp.arange(2), jnp.zeros(2), positive=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="must be bool, not float32"):
        hard_pool.update(
            hard_pool.init(3, num_positives=1), jnp.arange(2), jnp.zeros(2), positive=jnp.ones(2)
        )
    for decay in (1.5, 0, np.float32(1.5)):
        with pytest.raises(ValueError, match=rf"decay={decay} must be in \(0, 1\]"):
            hard_pool.update(pool, jnp.arange(2), jnp.zeros(2), decay=decay)
    with pytest.raises(ValueError, match="num_negatives=4 of a pool with 3"):
        hard_pool.sample(pool, jax.random.key(0), num_negatives=4)
    with pytest.raises(ValueError, match="num_positives=1 of a pool with 0"):
        hard_pool.sample(pool, jax.random.key(0), num_negatives=1, num_positives=1)


@pytest.mark.parametrize(
    "indices", [[2**31, 1], np.array([2**40 + 3, 1]), np.array([2**63 + 1, 1], np.uint64)], ids=str
)
def test_an_index_that_does_not_fit_is_refused_and_never_wrapped(indices):
    with pytest.raises(ValueError, match="do not fit into int32"):
        hard_pool.update(hard_pool.init(3), indices, jnp.ones(2))


def test_wide_integers_are_recorded_and_a_traced_one_that_does_not_fit_takes_no_part():
    def indices(seen):
        return hard_pool.update(hard_pool.init(3), seen, jnp.ones(2)).negatives.indices

    np.testing.assert_array_equal(indices(np.array([2**31 - 1, -(2**40)])), [2**31 - 1, -1, -1])
    np.testing.assert_array_equal(jax.jit(indices)(jnp.array([3_000_000_000, 1], jnp.uint32)), [1, -1, -1])
