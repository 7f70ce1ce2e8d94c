"""Selectors, weights and tables against plain numpy, and against what the papers promise of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import mining
from hardmine_jax.mining import score_table
from hardmine_jax.mining.quota_top_k import _keep_by_counting, _keep_by_sorting

NASTY = np.array([np.nan, np.inf, -np.inf, 3.0e38], np.float32)


def _losses(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, size=shape).astype(np.float32)


# top_fraction


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.7, 1.0])
def test_top_fraction_is_top_k_of_so_many(fraction):
    for number in (1, 2, 3, 10, 30, 99, 100, 1000):
        losses = _losses(number, seed=number)
        # Python's own product may lie a rounding above the whole number that is meant.
        expected = int(np.ceil(round(fraction * number, 6)))
        keep = mining.top_fraction(losses, fraction=fraction)
        chex.assert_trees_all_equal(keep, mining.top_k(losses, k=expected))


def test_top_fraction_of_a_schedule_and_its_least():
    losses, where = _losses(2, 70), np.arange(70) < np.array([[40], [1]])
    counts = jax.jit(lambda f: mining.top_fraction(losses, fraction=f, min_kept=3, where=where).sum(-1))
    assert (
        counts(0.25).tolist() == [10, 1]
        and counts(0.0).tolist() == [3, 1]
        and counts(9.0).tolist() == [40, 1]
    )
    for fraction in (0.0, -1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            mining.top_fraction(losses, fraction=fraction)


# quota_top_k


def _quotas(losses, group, k, where):
    keep = np.zeros(losses.shape, bool)
    for row in np.ndindex(losses.shape[:-1]):
        for g, most in enumerate(np.broadcast_to(k, (*losses.shape[:-1], np.shape(k)[-1]))[row]):
            units = np.flatnonzero(where[row] & (group[row] == g))
            keep[
                (*row, sorted(units, key=lambda i: (not np.isnan(losses[row][i]), -losses[row][i], i))[:most])
            ] = 1
    return keep


@pytest.mark.parametrize("values", [3, 10**6])
def test_quotas_are_top_k_of_each_group(values):
    rng = np.random.default_rng(values)
    losses = rng.integers(-values, values, (6, 150)).astype(np.float32)
    losses[rng.random(losses.shape) < 0.03] = np.nan
    group, where = rng.integers(-1, 6, losses.shape), rng.random(losses.shape) < 0.8
    select = jax.jit(lambda k: mining.quota_top_k(losses, group, k=k, where=where))
    for k in (np.array([-3, 2**31 - 1, 3, 0, 1]), rng.integers(0, 20, (6, 5))):
        expected = _quotas(losses, group, np.clip(k, 0, None), where)
        np.testing.assert_array_equal(select(k), expected)
    written = mining.quota_top_k(losses, group, k=[4, 0, 2], where=where)
    np.testing.assert_array_equal(written, _quotas(losses, group, [4, 0, 2], where))


@pytest.mark.parametrize("values", [2, 2**31])
def test_quotas_by_a_sort_are_those_by_counting(values):
    rng = np.random.default_rng(values)
    keys, group = rng.integers(-values, values, 500).astype(np.int32), rng.integers(0, 7, 500, dtype=np.int32)
    k = np.array([0, 1, 30, 500, 7, 60, 2], np.int32)
    chex.assert_trees_all_equal(
        jax.jit(_keep_by_sorting)(keys, group, k), jax.jit(_keep_by_counting)(keys, group, k)
    )


def test_quotas_of_positives_and_negatives_and_what_is_refused():
    losses, positive = _losses(2, 40), np.arange(80).reshape(2, 40) % 5 == 0
    keep = mining.quota_top_k(losses, positive, k=[6, 2])
    np.testing.assert_array_equal(keep & positive, mining.top_k(losses, k=2, where=positive))
    np.testing.assert_array_equal(keep & ~positive, mining.top_k(losses, k=6, where=~positive))
    for error, match, group, k in (
        (TypeError, "group of float32 must be integers", losses, [1]),
        (ValueError, r"group of shape \(40,\) != losses", positive[0], [1]),
        (TypeError, "k of float", positive, [1.0, 2.0]),
        (ValueError, "a number for each group", positive, 3),
        (ValueError, "a number for each group", positive, np.ones((3, 2), int)),
        (ValueError, "negative number", positive, [1, -1]),
    ):
        with pytest.raises(error, match=match):
            mining.quota_top_k(losses, group, k=k)


# rank_sample


def test_rank_sample_has_the_probabilities_that_it_promises():
    losses = np.array([5.0, 1.0, 3.0, 3.0, np.nan, 9.0], np.float32)
    where = np.array([1, 1, 1, 1, 1, 0], bool)
    rank = np.array([4, 1, 3, 3, 5, 0]) / 5
    keys = jax.random.split(jax.random.key(0), 4000)
    for beta in (0.0, 0.5, 2.0):
        kept = jax.vmap(lambda key, b=beta: mining.rank_sample(key, losses, beta=b, where=where))(keys)
        expected = np.where(where, rank**beta, 0)
        np.testing.assert_allclose(kept.mean(0), expected, atol=4 * 0.5 / np.sqrt(4000))


def test_rank_sample_of_one_is_drawn_in_proportion():
    losses, keys = np.arange(4.0, dtype=np.float32), jax.random.split(jax.random.key(1), 4000)
    half, whole = (mining.rank_sample(keys[0], losses, beta=beta, k=2) for beta in (jnp.bfloat16(2), 2.0))
    chex.assert_trees_all_equal(half, whole)
    kept = jax.vmap(lambda key: mining.rank_sample(key, losses, beta=2.0, k=1))(keys)
    expected = np.arange(1, 5) ** 2 / 30
    np.testing.assert_allclose(kept.mean(0), expected, atol=4 * 0.5 / np.sqrt(4000))


# Weights


def test_pruned_weights_keep_the_mean():
    scores = np.concatenate([_losses(60), NASTY[:3]])
    where = np.arange(63) % 7 != 0
    keys = jax.random.split(jax.random.key(2), 2000)
    weights = np.asarray(jax.vmap(lambda key: mining.prune_weights(key, scores, rate=0.5, where=where))(keys))
    mean = scores[where & np.isfinite(scores)].mean()
    hard = where & ~(scores < mean) | where & ~np.isfinite(scores)
    assert (weights[:, hard] == 1).all() and (weights[:, ~where] == 0).all()
    assert set(np.unique(weights[:, where & ~hard])) == {0.0, 2.0}
    error = weights[:, where & ~hard].std() / np.sqrt(2000 * (where & ~hard).sum())
    assert abs(weights[:, where & ~hard].mean() - 1) < 3 * error
    np.testing.assert_array_equal(mining.prune_weights(keys[0], scores, rate=0.0, where=where), where)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        mining.prune_weights(keys[0], scores, rate=1.0)


def test_each_row_is_pruned_by_its_own_mean():
    rows = np.stack([_losses(40), 100 * _losses(40, seed=1), np.full(40, np.nan, np.float32)])
    keys = jax.random.split(jax.random.key(3), 60)
    weights = np.asarray(jax.vmap(lambda key: mining.prune_weights(key, rows, rate=0.5))(keys))
    np.testing.assert_array_equal((weights == 0).any(0), rows < rows.mean(-1, keepdims=True))


def test_emphasis_is_a_sum_of_two_means():
    losses, where = _losses(4, 17), np.arange(68).reshape(4, 17) % 5 > 0
    keep = mining.harder_than_easiest(losses, where=where)
    weights = mining.emphasis_weights(keep, where, hard=5.0, easy=0.5)
    found = mining.masked_mean(losses, where=where, weights=weights)
    means = mining.masked_mean(losses, where=where), mining.masked_mean(losses, where=keep)
    np.testing.assert_allclose(found, 0.5 * means[0] + 5 * means[1], rtol=1e-6)
    half = mining.emphasis_weights(keep, where, hard=jnp.bfloat16(5), easy=jnp.bfloat16(0.5))
    np.testing.assert_array_equal(half, weights)
    nothing = mining.emphasis_weights(np.zeros_like(where), where, hard=5.0)
    np.testing.assert_array_equal(nothing, where)
    with pytest.raises(ValueError, match="keep must be bool"):
        mining.emphasis_weights(losses, where, hard=1.0)


def test_weighted_mean_and_its_gradient():
    losses, where = _losses(3, 5), np.arange(15).reshape(3, 5) % 4 > 0
    weights = _losses(3, 5, seed=1)

    def mean(losses, weights):
        return mining.masked_mean(losses, where=where, weights=weights)

    expected = (losses * weights)[where].sum() / where.sum()
    dirty = [np.where(where, x, np.inf) for x in (losses, weights)]
    value, gradients = jax.value_and_grad(mean, argnums=(0, 1))(*dirty)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, other in zip(gradients, (weights, losses), strict=True):
        np.testing.assert_allclose(gradient, np.where(where, other, 0) / where.sum(), rtol=1e-6)
    fixed = mining.masked_mean(losses, where=where, weights=weights, denominator=8)
    np.testing.assert_allclose(fixed, expected * where.sum() / 8, rtol=1e-6)
    with pytest.raises(ValueError, match="broadcast them first"):
        mining.masked_mean(losses, where=where, weights=weights[0])


# Indices, rows together, pairs


def test_kept_indices_come_hardest_first():
    losses = np.array([[2, 5, 5, 1, np.nan], [1, 2, 3, 4, 5]], np.float32)
    keep = np.array([[1, 1, 1, 0, 1], [0, 1, 0, 0, 0]], bool)
    indices, where = mining.kept_indices(losses, keep, capacity=3)
    chex.assert_shape([indices, where], (2, 3))
    assert indices[0].tolist() == [4, 1, 2] and where.tolist() == [[True] * 3, [True, False, False]]
    assert indices[1, where[1]].tolist() == [1] and keep[1, np.asarray(indices[1])].all()
    with pytest.raises(ValueError, match="capacity=6 > N=5"):
        mining.kept_indices(losses, keep, capacity=6)


def test_over_batch_is_one_row_of_all():
    losses, where = _losses(4, 9), np.arange(36).reshape(4, 9) % 3 > 0
    keep = mining.over_batch(mining.top_k)(losses, k=7, where=where)
    chex.assert_trees_all_equal(keep.ravel(), mining.top_k(losses.ravel(), k=7, where=where.ravel()))
    positive = losses > 2
    negatives = mining.over_batch(mining.hard_negatives)(losses, positive=positive, ratio=2.0)
    expected = mining.hard_negatives(losses.ravel(), positive=positive.ravel(), ratio=2.0)
    chex.assert_trees_all_equal(negatives.ravel(), expected)


def _jest_by_loops(key, scores: np.ndarray, k: int, chunks: int, where: np.ndarray) -> set[int]:
    drawn: list[int] = []
    for chunk in range(chunks):
        noise = np.asarray(jax.random.gumbel(jax.random.fold_in(key, chunk), (len(scores),)), np.float64)
        logits = [scores[i, i] + sum(scores[i, j] + scores[j, i] for j in drawn) for i in range(len(scores))]
        left = [i for i in range(len(scores)) if where[i] and i not in drawn]
        drawn += sorted(left, key=lambda i: -(logits[i] + noise[i]))[: k // chunks]
    return set(drawn)


def test_joint_sample_is_the_papers_loop():
    rng, select = np.random.default_rng(0), jax.jit(mining.joint_sample, static_argnames=("k", "chunks"))
    for seed in range(20):
        scores, where = rng.normal(size=(24, 24)).astype(np.float32), rng.random(24) < 0.8
        key = jax.random.key(seed)
        keep = select(key, np.where(where[:, None] & where, scores, np.nan), k=8, chunks=4, where=where)
        assert set(np.flatnonzero(keep)) == _jest_by_loops(key, scores, 8, 4, where)
    with pytest.raises(ValueError, match="chunks=3 do not divide k=8"):
        mining.joint_sample(key, scores, k=8, chunks=3)


def _embedded(number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(number, 3)).astype(np.float32)
    distances = np.linalg.norm(points[:, None] - points, axis=-1).astype(np.float32)
    return distances, rng.integers(0, 3, number), rng.random(number) < 0.8


@pytest.mark.parametrize("seed", range(3))
def test_batch_hard_and_semi_hard_are_loops(seed):
    distances, labels, where = _embedded(12, seed)
    found = mining.batch_hard(distances, labels, where=where)
    pairs = mining.semi_hard(distances, labels, margin=0.5, where=where)
    chex.assert_shape(list(found), (12,))
    chex.assert_shape(list(pairs), (144,))
    for a in range(12):
        same = [p for p in range(12) if where[a] and where[p] and labels[p] == labels[a] and p != a]
        other = [n for n in range(12) if where[a] and where[n] and labels[n] != labels[a]]
        assert bool(found.where[a]) == bool(same and other)
        if found.where[a]:
            assert found.positive[a] == max(same, key=lambda p: distances[a, p])
            assert found.negative[a] == min(other, key=lambda n: distances[a, n])
        for p in range(12):
            row = 12 * a + p
            assert (pairs.anchor[row], pairs.positive[row]) == (a, p)
            between = [n for n in other if 0 < distances[a, n] - distances[a, p] < 0.5]
            assert bool(pairs.where[row]) == (p in same and bool(between))
            if pairs.where[row]:
                assert pairs.negative[row] == min(between, key=lambda n: distances[a, n])


def test_triplets_refuse_what_is_no_square():
    with pytest.raises(ValueError, match=r"\[N, N\]"):
        mining.batch_hard(np.ones((2, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match="an integer an example"):
        mining.semi_hard(np.ones((2, 2)), np.zeros(2), margin=1.0)
    with pytest.raises(ValueError, match="margin=0 must be above 0"):
        mining.semi_hard(np.ones((2, 2)), np.zeros(2, int), margin=0)


# score_table


def test_score_table_is_a_dictionary():
    rng, known = np.random.default_rng(0), {}
    table, update = score_table.init(10), jax.jit(score_table.update)
    for _ in range(6):
        indices, scores = rng.integers(-2, 13, 8), rng.random(8).astype(np.float32)
        where = rng.random(8) < 0.7
        table = update(table, indices, scores, where=where)
        known |= {int(i): s for i, s, w in zip(indices, scores, where, strict=True) if w and 0 <= i < 10}
    expected = [known.get(i, np.inf) for i in range(10)]
    np.testing.assert_array_equal(table.scores, np.float32(expected))
    assert np.flatnonzero(table.seen).tolist() == sorted(known)
    scores, seen = score_table.read(table, np.array([[0, -1], [10, 9]]))
    np.testing.assert_array_equal(scores, np.float32([[expected[0], np.nan], [np.nan, expected[9]]]))
    assert seen[0, 0] == (0 in known) and not seen[0, 1] and not seen[1, 0]


def test_score_table_averages_what_it_has_seen():
    table = score_table.update(score_table.init(3), [0, 1], [4.0, np.inf])
    table = score_table.update(table, [0, 1, 2], [2.0, 1.0, 5.0], decay=0.5)
    assert table.scores.tolist() == [3.0, 1.0, 5.0]
    for wrong in ({"decay": 1.0}, {"where": [1, 0, 1]}):
        with pytest.raises(ValueError):
            score_table.update(table, [0, 1, 2], [2.0, 1.0, 5.0], **wrong)
    for wrong in (lambda i: score_table.update(table, i, [1.0]), lambda i: score_table.read(table, i)):
        with pytest.raises(ValueError, match="do not fit into int32"):
            wrong(np.array([2**32 + 1]))
        with pytest.raises(TypeError, match="dataset indices are integers"):
            wrong(np.array([0.5]))
    with pytest.raises(ValueError, match=r"one of each an example, \[B\]"):
        score_table.update(table, [0, 1], [2.0])


def test_joint_sample_takes_a_list_has_no_gradient_and_refuses():
    key, scores = jax.random.key(0), np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)
    keep = mining.joint_sample(key, scores, k=3, chunks=1)
    chex.assert_trees_all_equal(mining.joint_sample(key, scores.tolist(), k=3, chunks=1), keep)
    gradient = jax.grad(lambda x: jnp.where(mining.joint_sample(key, x, k=3, chunks=3), x[0], 0.0).sum())
    np.testing.assert_array_equal(gradient(scores)[1:], 0)
    for match, given, chunks in (
        (r"scores of shape \(5, 4\)", scores[:, :4], 1),
        ("chunks=0 < 1", scores, 0),
        ("chunks=4 > N=3", scores, 4),
    ):
        with pytest.raises(ValueError, match=match):
            mining.joint_sample(key, given, k=3, chunks=chunks)


def test_kept_indices_of_one_slot_and_what_is_refused():
    losses = np.array([1.0, 3.0, 2.0], np.float32)
    indices, where = mining.kept_indices(losses, [True, False, True], capacity=1)
    assert indices.tolist() == [2] and where.tolist() == [True]
    with pytest.raises(ValueError, match="capacity=0 < 1"):
        mining.kept_indices(losses, losses > 1, capacity=0)
    with pytest.raises(ValueError, match="keep must be bool"):
        mining.kept_indices(losses, losses, capacity=1)


def test_the_furthest_example_may_be_the_semi_hard_one():
    places = np.array([0.0, 1.0, 1.5], np.float32)
    found = mining.semi_hard(abs(places[:, None] - places), np.array([0, 0, 1]), margin=1.0)
    pairs = {(int(a), int(p)): int(n) for a, p, n, here in zip(*found, strict=True) if here}
    assert pairs[0, 1] == 2


def test_the_next_number_is_further_and_lists_do():
    near = np.float32(1)
    distances = [
        [0.0, near, np.nextafter(near, np.float32(2)), 3.0],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
        [1, 1, 1, 0],
    ]
    found = mining.semi_hard(distances, [0, 0, 1, 1], margin=0.5)
    pairs = {(int(a), int(p)): int(n) for a, p, n, here in zip(*found, strict=True) if here}
    assert pairs[0, 1] == 2


def test_a_least_number_that_is_traced():
    losses = _losses(2, 70)
    keep = jax.jit(lambda least: mining.top_fraction(losses, fraction=0.01, min_kept=least))(np.int32(5))
    chex.assert_trees_all_equal(keep, mining.top_k(losses, k=5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64, np.uint64])
def test_groups_of_any_integers_are_what_they_are(dtype):
    losses = np.arange(6, dtype=np.float32)
    group = np.array([0, 0, 1, 1, 127, 127], dtype)
    for groups in (128, 300):
        keep = mining.quota_top_k(losses, group, k=np.ones(groups, int))
        assert np.flatnonzero(keep).tolist() == [1, 3, 5]
    if np.iinfo(dtype).bits == 64:
        far = np.array([2**32, 0, 1, 1, 2**33 + 1, 0], dtype)
        assert np.flatnonzero(mining.quota_top_k(losses, far, k=[1, 1])).tolist() == [3, 5]
    with pytest.raises(ValueError, match="k has no group"):
        mining.quota_top_k(losses, group, k=[])
