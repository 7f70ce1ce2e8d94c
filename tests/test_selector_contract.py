"""Every selector under the same laws. A new selector is one row of SELECTORS."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hardmine_jax import detection, mining


def _hardest(losses: np.ndarray, where: np.ndarray, k: int) -> np.ndarray:
    """One row, by sorting (loss, lowest index); NaN before everything."""
    order = sorted(np.flatnonzero(where), key=lambda i: (not np.isnan(losses[i]), -losses[i], i))
    return np.isin(np.arange(len(losses)), order[:k])


def _above(losses: np.ndarray, where: np.ndarray, min_loss: float, min_kept: int) -> np.ndarray:
    return where & ~(losses <= min_loss) | _hardest(losses, where, min_kept)


def _hardest_negatives(losses: np.ndarray, where: np.ndarray, ratio: float, least: int) -> np.ndarray:
    positive = losses > 0.5
    wanted = int(np.floor(ratio * (where & positive).sum()))
    return _hardest(losses, where & ~positive, max(wanted, least))


def _quotas(losses: np.ndarray, where: np.ndarray, k: list[int]) -> np.ndarray:
    """Groups by level; the last one has no quota."""
    level = _level(losses) // 3
    return np.any([_hardest(losses, where & (level == g), most) for g, most in enumerate(k)], axis=0)


def _much_harder(losses: np.ndarray, where: np.ndarray, min_kept: int, max_kept: int) -> np.ndarray:
    compared = np.where(np.abs(losses) < np.finfo(np.float32).tiny, 0, losses)
    easiest = min(compared[where & ~np.isnan(losses)], default=np.inf)
    hard = where & ~(compared < 2 * easiest)
    return _hardest(losses, where, min(max(hard.sum(), min_kept), max_kept))


def _level(losses):
    """A small integer, so that the similarity of two units follows from their losses alone."""
    return sum((losses > edge).astype(np.int32) for edge in (-1.0, 0.125, 0.25, 0.5, 0.75, 1.0))


def _alike(level, other):
    """1 for the same level, 0.5 for the next one, then less."""
    return 1 / (1 + jnp.abs(level - other).astype(np.float32))


def _similarity_matrix(losses):
    level = jnp.atleast_1d(_level(losses))
    return _alike(level[..., :, None], level[..., None, :])


def _similarity_row(losses):
    level = _level(losses)
    return lambda index: _alike(jnp.take_along_axis(level, index[..., None], -1), level)


def _a_box_for_each_level(losses):
    left = 20 * _level(losses)[..., None]
    return left.astype(np.float32) + np.array([0, 0, 10, 10], np.float32).reshape((1,) * losses.ndim + (4,))


def _greedy(losses: np.ndarray, where: np.ndarray, threshold: float, max_kept: int) -> np.ndarray:
    """The textbook loop."""
    level, kept = _level(losses), []
    for i in sorted(np.flatnonzero(where), key=lambda i: (not np.isnan(losses[i]), -losses[i], i)):
        if len(kept) < max_kept and all(1 / (1 + abs(level[i] - level[j])) <= threshold for j in kept):
            kept.append(i)
    return np.isin(np.arange(len(losses)), kept)


def _over_one_device(losses, where, k):
    """Inside a mesh axis of length 1; more devices are in tests/mining/test_global_top_k.py."""

    def select(losses, where):
        return mining.global_top_k(losses, k=k, axis_name="device", where=where)

    return jax.vmap(select, axis_name="device")(*jax.tree.map(lambda array: array[None], (losses, where)))[0]


class Row(NamedTuple):
    """A selector with its options bound."""

    name: str
    select: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]  # key, losses, where -> keep
    oracle: Callable[[np.ndarray, np.ndarray], np.ndarray] | None  # one row in numpy; None for chance
    exactly: int | None  # keeps exactly min(this, participating); None where the losses decide
    # JAX 0.10 stops at a collective over a vmapped axis inside shard_map where it checks what varies.
    check_vma: bool = True


SELECTORS = [
    Row(
        "top_k",
        lambda key, losses, where: mining.top_k(losses, k=3, where=where),
        lambda losses, where: _hardest(losses, where, 3),
        3,
    ),
    Row(
        "top_1",
        lambda key, losses, where: mining.top_k(losses, k=1, where=where),
        lambda losses, where: _hardest(losses, where, 1),
        1,
    ),
    Row(
        "top_fraction",
        lambda key, losses, where: mining.top_fraction(losses, fraction=0.3, where=where),
        lambda losses, where: _hardest(losses, where, max(1, int(np.ceil(round(0.3 * where.sum(), 6))))),
        None,
    ),
    Row(
        "threshold",
        lambda key, losses, where: mining.threshold(losses, min_loss=0.5, where=where),
        lambda losses, where: _above(losses, where, 0.5, 0),
        None,
    ),
    Row(
        "threshold_min_kept",
        lambda key, losses, where: mining.threshold(losses, min_loss=0.5, min_kept=4, where=where),
        lambda losses, where: _above(losses, where, 0.5, 4),
        None,
    ),
    Row(
        "hard_negatives",
        lambda key, losses, where: mining.hard_negatives(
            losses, positive=losses > 0.5, ratio=1.5, min_negatives=1, where=where
        ),
        lambda losses, where: _hardest_negatives(losses, where, 1.5, 1),
        None,
    ),
    Row(
        "quota_top_k",
        lambda key, losses, where: mining.quota_top_k(losses, _level(losses) // 3, k=[3, 2], where=where),
        lambda losses, where: _quotas(losses, where, [3, 2]),
        None,
    ),
    Row(
        "harder_than_easiest",
        lambda key, losses, where: mining.harder_than_easiest(losses, max_kept=5, where=where),
        lambda losses, where: _much_harder(losses, where, 2, 5),
        None,
    ),
    Row(
        "non_max",
        lambda key, losses, where: mining.non_max(
            losses, _similarity_matrix(losses), threshold=0.4, where=where
        ),
        lambda losses, where: _greedy(losses, where, 0.4, len(losses)),
        None,
    ),
    Row(
        "non_max_rows",
        lambda key, losses, where: mining.non_max(
            losses, _similarity_row(losses), threshold=0.7, max_kept=3, where=where
        ),
        lambda losses, where: _greedy(losses, where, 0.7, 3),
        None,
    ),
    Row(
        "ohem",
        lambda key, losses, where: detection.ohem(losses, _a_box_for_each_level(losses), k=3, where=where),
        lambda losses, where: _greedy(losses, where, 0.7, 3),
        None,
    ),
    Row(
        "global_top_k",
        lambda key, losses, where: _over_one_device(losses, where, 3),
        lambda losses, where: _hardest(losses, where, 3),
        3,
        check_vma=False,
    ),
    Row("random_k", lambda key, losses, where: mining.random_k(key, losses, k=3, where=where), None, 3),
    Row(
        "rank_sample",
        lambda key, losses, where: mining.rank_sample(key, losses, beta=2.0, k=3, where=where),
        None,
        3,
    ),
]
DETERMINISTIC = [row for row in SELECTORS if row.oracle is not None]
# Both sides of the number of units at which the formulation changes.
SIZES = (7, 70)
KEY = np.array([0, 7], np.uint32)

every = pytest.mark.parametrize("row", SELECTORS, ids=lambda row: row.name)
deterministic = pytest.mark.parametrize("row", DETERMINISTIC, ids=lambda row: row.name)
counting = pytest.mark.parametrize(
    "row", [row for row in SELECTORS if row.exactly is not None], ids=lambda row: row.name
)
sized = pytest.mark.parametrize("num_units", SIZES)
# An eager loop would be compiled again at every call.
_JITTED = {row.name: jax.jit(row.select) for row in SELECTORS}


def _example(num_units: int, rows: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses without ties, and about two thirds of the units taking part."""
    rng = np.random.default_rng(seed)
    losses = np.stack([rng.permutation(num_units) for _ in range(rows)]).astype(np.float32) / num_units
    return losses, rng.random((rows, num_units)) < 0.66


def _oracle(row: Row, losses: np.ndarray, where: np.ndarray) -> np.ndarray:
    flat = zip(losses.reshape(-1, losses.shape[-1]), where.reshape(-1, where.shape[-1]), strict=True)
    return np.stack([row.oracle(*pair) for pair in flat]).reshape(where.shape)


NASTY = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0, 2.0, -1.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-40]),
    st.floats(width=32),
)


@every
@pytest.mark.parametrize(
    "num_units, dtype", [(7, np.float32), (7, jnp.bfloat16), (7, np.float16), (7, np.int32), (70, np.float32)]
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_is_a_subset_of_the_right_size_and_equals_the_oracle(row, num_units, dtype, data):
    size = 2 * num_units
    elements = st.integers(-3, 3) if dtype is np.int32 else NASTY
    drawn = data.draw(st.lists(elements, min_size=size, max_size=size))
    with np.errstate(over="ignore"):
        losses = np.array(drawn, np.float64).astype(dtype).reshape(2, num_units)
    where = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(2, num_units)
    keep = _JITTED[row.name](KEY, losses, where)
    chex.assert_shape(keep, losses.shape)
    chex.assert_type(keep, bool)
    keep = np.asarray(keep)
    assert not (keep & ~where).any()
    if row.exactly is not None:
        np.testing.assert_array_equal(keep.sum(-1), np.minimum(row.exactly, where.sum(-1)))
    if row.oracle is not None:
        np.testing.assert_array_equal(keep, _oracle(row, losses.astype(np.float64), where))


@every
@sized
def test_nothing_takes_part(row, num_units):
    losses = np.full((2, num_units), np.nan, np.float32)
    where = np.zeros(losses.shape, bool)

    def loss(losses):
        return mining.masked_mean(losses, where=_JITTED[row.name](KEY, losses, where))

    assert not _JITTED[row.name](KEY, losses, where).any()
    value, gradient = jax.value_and_grad(loss)(losses)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(losses))


@every
@sized
def test_everything_takes_part_without_where(row, num_units):
    losses, _ = _example(num_units)
    every_unit = np.ones(losses.shape, bool)
    select = _JITTED[row.name]
    chex.assert_trees_all_equal(select(KEY, losses, None), select(KEY, losses, every_unit))


@every
def test_jit_is_eager(row):
    losses, where = _example(7)
    chex.assert_trees_all_equal(_JITTED[row.name](KEY, losses, where), row.select(KEY, losses, where))


@every
@sized
def test_vmap_is_a_loop(row, num_units):
    losses, where = _example(num_units)
    keys = np.stack([np.full(len(losses), 3), np.arange(len(losses))], -1).astype(np.uint32)
    mapped = jax.jit(jax.vmap(row.select))(keys, losses, where)
    looped = np.stack([_JITTED[row.name](*args) for args in zip(keys, losses, where, strict=True)])
    chex.assert_trees_all_equal(mapped, looped)


@every
@sized
def test_leading_axes_are_free(row, num_units):
    losses, where = _example(num_units)
    for shape in [(num_units,), (2, 2, 2, num_units), (0, num_units)]:
        part, takes_part = (
            array.reshape(-1)[: np.prod(shape, dtype=int)].reshape(shape) for array in (losses, where)
        )
        keep = _JITTED[row.name](KEY, part, takes_part)
        chex.assert_shape(keep, shape)
        if row.oracle is not None and part.size:
            np.testing.assert_array_equal(keep, _oracle(row, part, takes_part))


@deterministic
@sized
def test_is_permutation_equivariant_without_ties(row, num_units):
    losses, where = _example(num_units)
    order = np.random.default_rng(1).permutation(num_units)
    moved = _JITTED[row.name](KEY, losses[:, order], where[:, order])
    chex.assert_trees_all_equal(moved, _JITTED[row.name](KEY, losses, where)[:, order])


@counting
@sized
def test_ties_keep_the_exact_number_and_the_lowest_index(row, num_units):
    _, where = _example(num_units)
    keep = np.asarray(_JITTED[row.name](KEY, np.ones(where.shape, np.float32), where))
    np.testing.assert_array_equal(keep.sum(-1), np.minimum(row.exactly, where.sum(-1)))
    if row.oracle is not None:
        np.testing.assert_array_equal(keep, where & (np.cumsum(where, axis=-1) <= row.exactly))


@every
@sized
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_garbage_in_slots_that_take_no_part_is_harmless(row, num_units, garbage):
    losses, where = _example(num_units)
    dirty = np.where(where, losses, np.float32(garbage))

    def loss(losses):
        return mining.masked_mean(losses, where=_JITTED[row.name](KEY, losses, where))

    select = _JITTED[row.name]
    chex.assert_trees_all_equal(select(KEY, dirty, where), select(KEY, losses, where))
    chex.assert_trees_all_equal(jax.value_and_grad(loss)(dirty), jax.value_and_grad(loss)(losses))


@every
@sized
def test_no_gradient_flows_through_the_choice(row, num_units):
    losses, where = _example(num_units)
    keep = _JITTED[row.name](KEY, losses, where)

    def loss(losses):
        return mining.masked_mean(losses, where=_JITTED[row.name](KEY, losses, where))

    expected = np.asarray(keep, np.float32) / max(1, int(keep.sum()))
    chex.assert_trees_all_close(jax.grad(loss)(losses), expected, rtol=1e-6)
    _, tangent = jax.jvp(
        lambda losses: _JITTED[row.name](KEY, losses, where), (losses,), (np.ones_like(losses),)
    )
    assert tangent.dtype == jax.dtypes.float0


@every
def test_pmap_and_shard_map_over_eight_devices_are_a_loop(row):
    num_units = max(SIZES)  # The formulation with loops, whose state must vary as the losses do.
    if jax.device_count() < 8:
        pytest.skip(f"{jax.device_count()} devices, 8 are needed (tests/conftest.py simulates them on CPU)")
    losses, where = _example(num_units, rows=16)
    losses, where = losses.reshape(8, 2, num_units), where.reshape(8, 2, num_units)
    keys = np.stack([np.full(8, 3), np.arange(8)], -1).astype(np.uint32)
    looped = np.stack([_JITTED[row.name](*args) for args in zip(keys, losses, where, strict=True)])
    chex.assert_trees_all_equal(jax.pmap(row.select)(keys, losses, where), looped)

    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    one_device = jax.shard_map(
        lambda key, losses, where: row.select(key[0], losses[0], where[0])[None],
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
        check_vma=row.check_vma,
    )
    chex.assert_trees_all_equal(jax.jit(one_device)(keys, losses, where), looped)


@every
def test_jit_over_sharded_rows_is_one_device(row):
    losses, where = _example(max(SIZES), rows=16)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    keep = _JITTED[row.name](KEY, jax.device_put(losses, sharding), jax.device_put(where, sharding))
    chex.assert_trees_all_equal(keep, _JITTED[row.name](KEY, losses, where))


@every
def test_where_must_be_bool_and_of_the_same_shape(row):
    losses, where = _example(7)
    with pytest.raises(ValueError, match="must be bool, not float32"):
        row.select(KEY, losses, where.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(7,\) != losses \(8, 7\)"):
        row.select(KEY, losses, where[0])
    with pytest.raises(ValueError, match="the last axis must be the units"):
        row.select(KEY, np.float32(1.0), None)
