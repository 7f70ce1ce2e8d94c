"""`mine` against the masked path. Beside this: test_mine_transformations.py and test_mine_cost.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardmine_jax.mining.jaxprs import primitive_names
from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import Mined, mine
from hardmine_jax.mining.reuse import Residuals
from hardmine_jax.mining.threshold import threshold
from hardmine_jax.mining.top_k import top_k

NUM_UNITS = 7
WAYS = [{}, {"chunk": 3}, {"reuse": True}]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
CHUNKS = [{"chunk": 1}, {"chunk": NUM_UNITS}, {"chunk": NUM_UNITS + 4}]


def _unit_loss(*args):
    """Of one unit; every floating leaf matters, none of them linearly."""
    total = jnp.float32(0.0)
    for leaf in jax.tree.leaves(args):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            total += jax.random.normal(leaf)
        else:
            total = jnp.sin(
                total
                + jnp.sum(
                    jnp.cos(leaf.astype(jnp.float32)) * jnp.arange(1.0, 1.0 + leaf.size).reshape(leaf.shape)
                )
            )
    return total


def _by_threshold(least, losses, *args):
    return threshold(losses, min_loss=least)


def _masked(loss_fn, keep, floating, merge):
    """Value and gradient of the masked path for a choice that is given."""

    def loss(floating):
        return masked_mean(loss_fn(*merge(floating)), where=keep)

    return jax.value_and_grad(loss)(floating)


def _split(args):
    """Floating leaves, and the function that puts them back."""
    leaves, structure = jax.tree.flatten(args)
    places = [place for place, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def merge(floating):
        merged = list(leaves)
        for place, leaf in zip(places, floating, strict=True):
            merged[place] = leaf
        return jax.tree.unflatten(structure, merged)

    return [leaves[place] for place in places], merge


def _runner(loss_fn, merge, *, capacity, in_axes, way):
    """Jitted (floating leaves, threshold) -> ((value, Mined), gradient)."""

    @jax.jit
    def run(floating, least):
        select = functools.partial(_by_threshold, least)
        hard = mine(loss_fn, select, capacity=capacity, in_axes=in_axes, **way)

        def loss(floating):
            mined = hard(*merge(floating))
            return masked_mean(mined.losses, where=mined.keep), mined

        return jax.value_and_grad(loss, has_aux=True)(floating)

    return run


def _check(loss_fn, args, leasts, *, capacity, in_axes, way):
    """Mined equals masked for all units above each threshold, less those that do not fit."""
    floating, merge = _split(args)
    losses = np.asarray(jax.jit(loss_fn)(*args))
    run = _runner(loss_fn, merge, capacity=capacity, in_axes=in_axes, way=way)
    masked = jax.jit(lambda floating, keep: _masked(loss_fn, keep, floating, merge))
    for least in np.atleast_1d(np.asarray(leasts, np.float32)):
        selected = np.flatnonzero(losses > least)
        fitting = sorted(sorted(selected, key=lambda i: (-losses[i], i))[:capacity])
        (value, mined), gradient = run(floating, least)
        expected = masked(floating, np.isin(np.arange(len(losses)), fitting))
        assert isinstance(mined, Mined)
        chex.assert_shape([mined.losses, mined.keep, mined.indices], (capacity,))
        chex.assert_type([mined.keep, mined.indices], [bool, jnp.int32])
        indices = np.asarray(mined.indices)
        np.testing.assert_array_equal(mined.keep, np.arange(capacity) < len(fitting))
        np.testing.assert_array_equal(indices[: len(fitting)], fitting)
        assert set(indices[len(fitting) :].tolist()) <= set(fitting[:1] or [0])
        assert int(mined.num_selected) == len(selected)
        assert int(mined.num_dropped) == max(0, len(selected) - capacity)
        chex.assert_trees_all_close((value, gradient), expected, rtol=1e-4, atol=1e-5)


@st.composite
def _tree(draw, *, carries_units, depth=2):
    """(pytree of arrays, in_axes for it): a leaf, or a dict, tuple or list of such."""
    kind = draw(st.sampled_from(["leaf", "dict", "tuple", "none"] if depth else ["leaf"]))
    if kind == "none":
        return {"nothing": None, "leaf": draw(_leaf(False))[0]}, None
    if kind == "leaf":
        return draw(_leaf(carries_units))
    parts = [
        draw(_tree(carries_units=carries_units, depth=depth - 1)) for _ in range(draw(st.integers(1, 2)))
    ]
    if kind == "tuple":
        return tuple(tree for tree, _ in parts), tuple(axes for _, axes in parts)
    return {f"k{i}": tree for i, (tree, _) in enumerate(parts)}, {
        f"k{i}": axes for i, (_, axes) in enumerate(parts)
    }


@st.composite
def _leaf(draw, carries_units):
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = draw(st.lists(st.integers(1, 3), max_size=2))
    axis = None
    if carries_units and draw(st.integers(0, 3)):
        axis = draw(st.integers(0, len(shape)))
        shape.insert(axis, NUM_UNITS)
        axis = draw(st.sampled_from([axis, axis - len(shape)]))
    if axis is not None and draw(st.integers(0, 4)) == 0:
        keys = jax.random.split(jax.random.key(int(rng.integers(99))), NUM_UNITS)
        return keys, draw(st.sampled_from([0, -1]))
    whole = draw(st.integers(0, 3)) == 0
    return jnp.asarray(
        rng.integers(0, 9, shape) if whole else rng.normal(size=shape).astype(np.float32)
    ), axis


@settings(max_examples=8, deadline=None)
@given(
    tree=_tree(carries_units=True),
    shared=_tree(carries_units=False),
    capacity=st.integers(1, NUM_UNITS),
    way=st.sampled_from(WAYS),
)
def test_equals_the_masked_path_for_random_pytrees(tree, shared, capacity, way):
    anchor = np.random.default_rng(3).normal(size=(2, NUM_UNITS)).astype(np.float32)
    args, in_axes = (shared[0], tree[0], jnp.asarray(anchor)), (None, tree[1], -1)
    loss_fn = jax.vmap(_unit_loss, in_axes=in_axes)
    leasts = _between(jax.jit(loss_fn)(*args))[[0, NUM_UNITS // 3, NUM_UNITS // 2, NUM_UNITS]]
    _check(loss_fn, args, leasts, capacity=capacity, in_axes=in_axes, way=way)


def _head(seed=0, num_units=NUM_UNITS):
    """Two layers and a cross-entropy over units."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (5, 8), "b1": (8,), "w2": (8, 4)}
    params = {name: jnp.asarray(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(num_units, 5)).astype(np.float32))
    return params, x, jnp.asarray(rng.integers(0, 4, num_units))


def _cross_entropy(params, x, labels):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    logits = jax.nn.log_softmax(hidden @ params["w2"])
    return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def _by_position(params, x, labels, *, numpy):
    """Points at the rows by their numbers, which are others for few units than for all."""
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    rows = (np if numpy else jnp).arange(len(labels))
    return -jax.nn.log_softmax(hidden @ params["w2"])[rows, labels]


def _by_counter(params, x, labels):
    def body(index, losses):
        return losses.at[index].set(
            jnp.square(x[index] @ params["w1"]).sum() + labels[index].astype(jnp.float32)
        )

    return jax.lax.fori_loop(0, len(labels), body, jnp.zeros(len(labels)))


def _by_branch(params, x, labels):
    """The rows are numbered where no operand of the branch shows it."""
    logits = jax.nn.log_softmax(jax.nn.relu(x @ params["w1"] + params["b1"][None]) @ params["w2"])

    def by_number():
        return -logits[jnp.arange(len(labels)), labels]

    return jax.lax.cond(params["b1"][0] < 99, by_number, lambda: logits[:, 0])


def _between(losses):
    """Thresholds that keep 0, 1, ... N units, where the last bit of a loss decides nothing."""
    losses = np.sort(np.asarray(losses))[::-1]
    return np.concatenate([[99.0], (losses[1:] + losses[:-1]) / 2, [-99.0]])


@pytest.mark.parametrize(
    "way, capacity",
    [(way, capacity) for way in WAYS for capacity in (1, 3, NUM_UNITS)] + [(way, 3) for way in CHUNKS],
    ids=str,
)
def test_fewer_equal_and_more_kept_than_capacity(way, capacity):
    args = _head()
    leasts = _between(jax.jit(_cross_entropy)(*args))
    _check(_cross_entropy, args, leasts, capacity=capacity, in_axes=(None, 0, 0), way=way)


@pytest.mark.parametrize("capacity", [3, NUM_UNITS])
@pytest.mark.parametrize(
    "loss_fn",
    [
        functools.partial(_by_position, numpy=False),
        functools.partial(_by_position, numpy=True),
        _by_counter,
        _by_branch,
    ],
    ids=["jnp.arange", "np.arange", "fori_loop", "cond"],
)
def test_reuse_works_out_positions_anew(loss_fn, capacity):
    args = _head()
    leasts = _between(jax.jit(loss_fn)(*args))[[3, 6]]
    _check(loss_fn, args, leasts, capacity=capacity, in_axes=(None, 0, 0), way={"reuse": True})


def _hidden(params, x):
    return jnp.tanh(x @ params["w1"])


@jax.custom_vjp
def _read(hidden, rows, y):
    return hidden[rows, y]


def _spread_back(residuals, gradient):
    rows, y, hidden = residuals
    return jnp.zeros_like(hidden).at[rows, y].add(gradient), None, None


_read.defvjp(lambda hidden, rows, y: (_read(hidden, rows, y), (rows, y, hidden)), _spread_back)


# Whose gradient was that of other rows, and to which integers or bools along the units lead.
NUMBERED = {
    "cumsum": lambda params, x, y: _hidden(params, x)[jnp.cumsum(jnp.ones(len(y), int)) - 1, y],
    "cumsum of bool": lambda params, x, y: _hidden(params, x)[jnp.cumsum(y >= 0) - 1, y],
    "cumsum of int8": lambda params, x, y: _hidden(params, x)[jnp.cumsum(jnp.ones_like(y, jnp.int8)) - 1, y],
    "linspace": lambda params, x, y: _hidden(params, x)[
        jnp.round(jnp.linspace(0, len(y) - 1, len(y))).astype(int), y
    ],
    "scan": lambda params, x, y: _hidden(params, x)[
        jax.lax.scan(lambda carry, _: (carry + 1, carry), 0, None, length=len(y))[1], y
    ],
    "flat": lambda params, x, y: _hidden(params, x).reshape(-1)[jnp.arange(len(y)) * 8 + y],
    "sorted and back": lambda params, x, y: jnp.tanh(_hidden(params, x[jnp.argsort(y)]))[:, 0][
        jnp.argsort(jnp.argsort(y))
    ],
    "a gradient of its own": lambda params, x, y: _read(
        _hidden(params, x), jnp.arange(len(y)) + jnp.where(y < 0, 1, 0), y
    ),
    "checkpoint": lambda params, x, y: jax.checkpoint(lambda hidden, rows: jnp.sin(hidden)[rows, y])(
        _hidden(params, x), jnp.cumsum(jnp.ones_like(y)) - 1
    ),
}
PROVEN = {
    "arange": lambda params, x, y: _hidden(params, x)[jnp.arange(len(y)), y],
    "take_along_axis": lambda params, x, y: jnp.take_along_axis(_hidden(params, x), y[:, None], 1)[:, 0],
    "table by class": lambda params, x, y: jnp.sin(params["w1"].T[y])[:, 0] * x[:, 0],
    "weighted by place": lambda params, x, y: _hidden(params, x)[:, 0] * jnp.arange(1.0, 1 + len(y)) / 9,
}


@pytest.mark.parametrize("name", [*NUMBERED, *PROVEN])
def test_reuse_is_the_masked_path_however_rows_are_numbered(name, monkeypatch):
    known = []
    kept = property(lambda self: known[-1], lambda self, value: known.append(value))
    monkeypatch.setattr(Residuals, "known", kept, raising=False)
    args, loss_fn = _head(), {**NUMBERED, **PROVEN}[name]
    leasts = _between(jax.jit(loss_fn)(*args))[[3]]
    _check(loss_fn, args, leasts, capacity=3, in_axes=(None, 0, 0), way={"reuse": True})
    assert set(known) == {name in PROVEN}


def test_a_jaxpr_is_read_down_to_the_branches_of_a_condition():
    def function(x):
        return jax.lax.cond(x > 0, jnp.sin, lambda x: jax.lax.fori_loop(0, 2, lambda _, x: jnp.cos(x), x), x)

    assert {"cond", "sin", "cos"} <= set(primitive_names(jax.make_jaxpr(function)(1.0).jaxpr))


@every_way
def test_the_choice_is_not_differentiated(way):
    @jax.custom_jvp
    def size(x):
        return jnp.abs(x)

    @size.defjvp
    def rule(primals, tangents):
        raise AssertionError("what was given to select has a gradient")

    hard = mine(jnp.square, lambda losses, x: top_k(size(x), k=2), capacity=2, in_axes=0, **way)
    gradient = jax.grad(lambda x: hard(x).losses.sum())(jnp.arange(float(NUM_UNITS)))
    np.testing.assert_array_equal(gradient, [0, 0, 0, 0, 0, 10, 12])


@every_way
@pytest.mark.parametrize("num_units", [1, 2])
def test_one_unit_and_two(way, num_units):
    args = _head(num_units=num_units)
    leasts = _between(jax.jit(_cross_entropy)(*args))
    _check(_cross_entropy, args, leasts, capacity=1, in_axes=(None, 0, 0), way=way)


def test_ties_beyond_the_capacity_drop_the_highest_index():
    hard = mine(jnp.square, lambda losses, x: losses > 0.5, capacity=2, in_axes=0)
    mined = hard(jnp.array([1.0, 0.0, -1.0, 2.0, 1.0]))
    np.testing.assert_array_equal(mined.indices, [0, 3])
    assert (int(mined.num_selected), int(mined.num_dropped)) == (4, 2)


def test_select_sees_all_units_and_the_arguments_that_carry_them():
    seen = {}

    def select(losses, *mapped):
        seen["mapped"] = mapped
        return top_k(losses, k=2, where=mapped[1]["where"])

    where = jnp.array([False, True, True, True])
    params, tree = {"w": jnp.float32(2.0)}, {"where": where, "scale": jnp.float32(3.0)}
    hard = mine(
        lambda params, x, tree: params["w"] * tree["scale"] * x,
        select,
        capacity=3,
        in_axes=(None, 0, {"where": 0, "scale": None}),
    )
    x = jnp.array([9.0, 1.0, 3.0, 2.0])
    mined = hard(params, x, tree)
    chex.assert_trees_all_equal(seen["mapped"], (x, tree))
    np.testing.assert_array_equal(mined.indices, [2, 3, 2])
    np.testing.assert_array_equal(mined.losses, [18.0, 12.0, 18.0])


def test_a_bare_int_maps_every_argument_and_negative_axes_count_from_the_end():
    def loss_fn(x, y):
        return (x * y).sum(0)

    x, y = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))
    for in_axes in (1, -1, (1, -1), [1, 1]):
        mined = mine(loss_fn, lambda losses, *_: top_k(losses, k=1), capacity=1, in_axes=in_axes)(x, y)
        np.testing.assert_array_equal(mined.losses, [7.0])


def test_what_is_no_array_passes_by_as_it_is():
    def loss_fn(activation, power, x):
        assert power == 2 and isinstance(power, int)
        return activation(x) ** power

    hard = mine(loss_fn, lambda losses, x: top_k(losses, k=1), capacity=1, in_axes=(None, None, 0), chunk=2)
    np.testing.assert_array_equal(hard(jnp.tanh, 2, jnp.arange(3.0)).indices, [2])


@every_way
@pytest.mark.parametrize("capacity, least, expected", [(4, 1.5, 2.5), (1, 2.5, 3.0)])
def test_free_slots_never_meet_padding(way, capacity, least, expected):
    """The derivative of the padding's loss is infinite: 0 times it would be NaN."""

    def loss_fn(weight, x):
        return jnp.sqrt(weight * x)

    def loss(weight):
        hard = mine(loss_fn, lambda losses, x: losses > least, capacity=capacity, in_axes=(None, 0), **way)
        mined = hard(weight, jnp.array([0.0, 4.0, 0.0, 9.0, 1.0, 1.0, 1.0]))
        return masked_mean(mined.losses, where=mined.keep)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float32(1.0))
    assert (float(value), float(gradient)) == (expected, expected / 2)


@every_way
def test_nothing_kept_is_zero_with_a_zero_gradient(way):
    hard = mine(_cross_entropy, lambda losses, *_: losses > 99, capacity=3, in_axes=(None, 0, 0), **way)

    def loss(params, x, labels):
        mined = hard(params, x, labels)
        return masked_mean(mined.losses, where=mined.keep)

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*_head())
    assert value == 0.0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@every_way
def test_the_choice_may_be_made_by_what_has_no_derivative(way):
    """As a loop has none in reverse mode: nothing that select is given may still carry a gradient."""

    def select(losses, x):
        least = jax.lax.while_loop(
            lambda least: (losses > least).sum(dtype=jnp.int32) > 2, lambda least: least + 0.5, x.min()
        )
        return losses > least

    def loss(weight, x):
        mined = mine(lambda weight, x: weight * x, select, capacity=2, in_axes=(None, 0), **way)(weight, x)
        return masked_mean(mined.losses, where=mined.keep)

    x = jnp.arange(1.0, 8.0)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(1.0), x)
    assert (float(value), float(gradients[0])) == (6.5, 6.5)
    np.testing.assert_array_equal(gradients[1], np.where(np.asarray(x) > 5, 0.5, 0))


def _dropout_loss(weight, x, keys):
    """Each unit draws its own mask, from its own key."""
    masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x.shape[1:]))(keys)
    return jnp.square(jnp.where(masks, x, 0.0) @ weight).sum(-1)


@pytest.mark.parametrize("way, typed", [*((way, True) for way in WAYS), ({}, False)], ids=str)
def test_dropout_keys_that_travel_make_it_exact(way, typed):
    _, x, _ = _head()
    keys = jax.random.split(jax.random.key(5), NUM_UNITS)
    keys = keys if typed else jax.random.key_data(keys)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32))
    leasts = _between(jax.jit(_dropout_loss)(weight, x, keys))[[3, 6]]
    _check(_dropout_loss, (weight, x, keys), leasts, capacity=4, in_axes=(None, 0, 0), way=way)


def test_reuse_keeps_the_masks_of_one_key_for_all():
    _, x, _ = _head()

    def loss_fn(weight, x, key):
        return jnp.square(jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0) @ weight)

    args = jnp.arange(1.0, 6.0), x, jax.random.key(2)
    _check(
        loss_fn,
        args,
        _between(jax.jit(loss_fn)(*args))[[3, 6]],
        capacity=4,
        in_axes=(None, 0, None),
        way={"reuse": True},
    )


def test_reuse_keeps_the_integers_of_one_key_for_all():
    """They are no positions, although they lie along the units: drawn anew for few units they are others."""
    _, x, _ = _head()

    def loss_fn(table, x, key):
        return jnp.square(table[jax.random.randint(key, (len(x),), 0, len(table))] * x[:, 0] + 1)

    args = jnp.arange(1.0, 6.0), x, jax.random.key(2)
    leasts = _between(jax.jit(loss_fn)(*args))[[3, 6]]
    _check(loss_fn, args, leasts, capacity=4, in_axes=(None, 0, None), way={"reuse": True})


def test_score_dtype_takes_a_python_number():
    """As an argument of `jax.grad` it is no array yet where it is cast."""
    hard = mine(
        lambda weight, x: weight * x,
        lambda losses, x: top_k(losses, k=2),
        capacity=2,
        in_axes=(None, 0),
        score_dtype=jnp.bfloat16,
    )
    assert float(jax.grad(lambda weight: hard(weight, jnp.arange(5.0)).losses.sum())(3.0)) == 7.0


def test_score_dtype_is_for_the_first_run_only():
    seen = []

    def loss_fn(params, x, labels):
        seen.append((params["w1"].dtype, x.dtype, labels.dtype))
        return _cross_entropy(params, x, labels)

    def select(losses, params, x, labels):
        raise AssertionError("shared arguments are not for select")

    def right_select(losses, x, labels):
        assert losses.dtype == jnp.float32 and x.dtype == jnp.float32
        return top_k(losses, k=3)

    for chunk in (None, 3):
        options = {"capacity": 3, "in_axes": (None, 0, 0), "chunk": chunk}
        params, x, labels = _head()
        mined = mine(loss_fn, right_select, score_dtype=jnp.bfloat16, **options)(params, x, labels)
        assert (jnp.bfloat16, jnp.bfloat16, labels.dtype) in seen
        assert seen[-1] == (jnp.float32, jnp.float32, labels.dtype)
        exact = np.asarray(_cross_entropy(params, x, labels))
        np.testing.assert_allclose(mined.losses, exact[mined.indices], rtol=1e-5)
        # Which are hardest may change by the rounding of bfloat16, 8 bits, and no further.
        assert exact[mined.indices].min() >= np.sort(exact)[-3] - 0.1
        with pytest.raises(TypeError):
            mine(loss_fn, select, **options)(params, x, labels)


def test_forward_mode_and_second_derivatives_without_reuse():
    args = _head()
    hard = mine(_cross_entropy, lambda losses, *_: top_k(losses, k=3), capacity=4, in_axes=(None, 0, 0))

    def mined_loss(b1):
        mined = hard({**args[0], "b1": b1}, *args[1:])
        return masked_mean(mined.losses, where=mined.keep)

    def masked_loss(b1):
        losses = _cross_entropy({**args[0], "b1": b1}, *args[1:])
        return masked_mean(losses, where=top_k(losses, k=3))

    b1 = args[0]["b1"]
    found = jax.jit(lambda b1: (jax.jvp(mined_loss, (b1,), (b1,)), jax.hessian(mined_loss)(b1)))(b1)
    expected = jax.jit(lambda b1: (jax.jvp(masked_loss, (b1,), (b1,)), jax.hessian(masked_loss)(b1)))(b1)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_reuse_refuses_second_derivatives():
    """Its residuals are cut off from the arguments, so that terms would be missing without a sign of it."""
    params, x, labels = _head()
    select = functools.partial(_by_threshold, -99.0)
    hard = mine(_cross_entropy, select, capacity=3, in_axes=(None, 0, 0), reuse=True)

    def gradient(params, scale=1.0):
        return jax.grad(lambda params: scale * hard(params, x, labels).losses.sum())(params)

    def size(params, scale=1.0):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient(params, scale)))

    with pytest.raises(ValueError, match="set reuse=False for second derivatives"):
        jax.jit(jax.grad(size))(params)
    # What does not pass through the residuals may be differentiated once more.
    found = jax.jit(jax.grad(size, argnums=1))(params, 3.0)
    np.testing.assert_allclose(found, 6 * size(params), rtol=1e-5)


KEEP_TWO = {"select": lambda losses, *_: top_k(losses, k=2), "capacity": 2}


def test_numbers_out_of_range_are_named():
    def options(**changed):
        return {"capacity": 2, "in_axes": 0, **changed}

    def select(losses, x):
        return top_k(losses, k=1)

    with pytest.raises(ValueError, match="capacity=0 < 1"):
        mine(jnp.square, select, **options(capacity=0))
    with pytest.raises(ValueError, match="chunk=0 < 1"):
        mine(jnp.square, select, **options(chunk=0))
    with pytest.raises(ValueError, match="capacity=9 > N=5"):
        mine(jnp.square, select, **options(capacity=9))(jnp.zeros(5))
    with pytest.raises(TypeError, match="capacity=2.0 must be a Python int"):
        mine(jnp.square, select, **options(capacity=2.0))
    with pytest.raises(TypeError, match="no floating type"):
        mine(jnp.square, select, **options(score_dtype=jnp.int8))
    with pytest.raises(ValueError, match="chunk=3 saves memory: choose one"):
        mine(jnp.square, select, **options(chunk=3, reuse=True))
    with pytest.raises(ValueError, match="bfloat16 would make one of that precision"):
        mine(jnp.square, select, **options(score_dtype=jnp.bfloat16, reuse=True))


@pytest.mark.parametrize(
    "in_axes, args, message",
    [
        ((0, 0), (jnp.zeros(5),), "2 entries for 1 arguments"),
        ((None,), (jnp.zeros(5),), "finds no units"),
        ((0,), (jnp.zeros(()),), r"axis 0 for args\[0\] of shape \(\): it has no such axis"),
        ((-3,), (jnp.zeros((5, 2)),), r"axis -3 for args\[0\] of shape \(5, 2\)"),
        (
            ({"x": 0},),
            ({"x": jnp.zeros(5), "y": jnp.zeros(5)},),
            r"in_axes\[0\]=.* is no prefix of args\[0\]",
        ),
        (
            ({"x": 0, "y": 1},),
            ({"x": jnp.zeros(5), "y": jnp.zeros((5, 7))},),
            r"\['x'\] has 5, .*\['y'\] has 7",
        ),
        ((0, 0), (jnp.zeros(5), 3.0), r"axis 0 for args\[1\], which is no array but 3.0"),
    ],
)
def test_in_axes_that_do_not_fit_are_named(in_axes, args, message):
    with pytest.raises(ValueError, match=message):
        mine(lambda *args: args[0], in_axes=in_axes, **KEEP_TWO)(*args)


def test_in_axes_are_integers():
    with pytest.raises(TypeError, match=r"in_axes says 0.5 for args\[0\]"):
        mine(jnp.square, in_axes=0.5, **KEEP_TWO)(jnp.zeros(5))


@every_way
@pytest.mark.parametrize(
    "loss_fn, message",
    [
        (lambda x: x.sum(), r"not shape \(\): reduce what lies within a unit"),
        (lambda x: x, r"not shape \([1-7], 2\)"),
        # The number of units is written into it.
        (lambda x: x[0, 0] + jnp.zeros(NUM_UNITS), r"not shape \(7,\)"),
        (lambda x: (x[:, 0], x), "not tuple"),
    ],
)
def test_losses_that_are_not_one_a_unit_are_named(way, loss_fn, message):
    with pytest.raises(ValueError, match=r"loss_fn must return .* \[N\]=\[[1-7]\], " + message):
        mine(loss_fn, in_axes=0, **KEEP_TWO, **way)(jnp.zeros((NUM_UNITS, 2)))


@functools.cache
def _regression():
    rng = np.random.default_rng(0)
    x, y, reference = rng.normal(size=(3, 40)).astype(np.float32)
    reference[5] = np.inf
    losses = (1.5 * x - y) ** 2
    return x, y, reference, losses, losses - reference


def _squared_error(weight, x, y, reference):
    return (weight * x - y) ** 2


@every_way
@pytest.mark.parametrize("capacity", [4, 9, 40])
def test_a_score_is_what_is_ranked_also_when_the_capacity_is_short(way, capacity):
    x, y, reference, losses, excess = _regression()
    kept = np.sort(np.argsort(-excess, kind="stable")[: min(capacity, 9)])
    hard = mine(
        _squared_error,
        functools.partial(top_k, k=9),
        capacity=capacity,
        in_axes=(None, 0, 0, 0),
        score_fn=lambda losses, x, y, reference: losses - reference,
        **way,
    )

    def loss(weight):
        mined = hard(weight, x, y, reference)
        return masked_mean(mined.losses, where=mined.keep), mined

    (value, mined), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(np.float32(1.5))
    np.testing.assert_array_equal(mined.indices[mined.keep], kept)
    assert (int(mined.num_selected), int(mined.num_dropped)) == (9, max(0, 9 - capacity))
    np.testing.assert_allclose(value, losses[kept].mean(), rtol=1e-5)
    slopes = 2 * x[kept] * (1.5 * x[kept] - y[kept])
    np.testing.assert_allclose(gradient, slopes.mean(), rtol=1e-5)


def test_a_score_is_not_differentiated_and_may_take_the_losses_alone():
    x, y, reference, losses, _ = _regression()
    in_axes = (None, 0, 0, 0)
    for select in (functools.partial(top_k, k=3), lambda scores, *_: top_k(scores, k=3)):
        hard = mine(_squared_error, select, capacity=3, in_axes=in_axes, score_fn=lambda losses: -losses)
        gradient = jax.grad(lambda weight, hard=hard: hard(weight, x, y, reference).losses.sum())(1.5)
        easy = np.argsort(losses)[:3]
        np.testing.assert_allclose(gradient, (2 * x * (1.5 * x - y))[easy].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "score_fn, error, message",
    [
        (
            lambda losses, *_: losses.mean(),
            ValueError,
            r"score_fn must return scores \[N\]=\[40\], not float32",
        ),
        (lambda losses, *_: None, ValueError, "not NoneType"),
        (lambda losses, *_: losses.astype(complex), TypeError, "losses of complex64 have no order"),
    ],
)
def test_scores_that_are_not_one_a_unit_are_named(score_fn, error, message):
    select = functools.partial(top_k, k=3)
    hard = mine(_squared_error, select, capacity=3, in_axes=(None, 0, 0, 0), score_fn=score_fn)
    with pytest.raises(error, match=message):
        hard(1.5, *_regression()[:3])


@pytest.mark.parametrize(
    "select, message",
    [
        (lambda losses, x: losses, r"not float32 of shape \(5,\)"),
        (lambda losses, x: losses[:2] > 0, r"not bool of shape \(2,\)"),
        (lambda losses, x: None, "not NoneType"),
    ],
)
def test_a_selector_that_returns_no_keep_is_named(select, message):
    with pytest.raises(ValueError, match=r"select must return keep, bool \[N\]=\[5\], " + message):
        mine(jnp.square, select, capacity=2, in_axes=0)(jnp.zeros(5))


@pytest.mark.parametrize(
    "loss_fn, message",
    [
        # Units merged with what lies within them.
        (
            lambda x: jnp.sin(jnp.sin(x.reshape(-1))).reshape(x.shape).sum(1),
            r"\(10,\) for 5 units .*reuse=False",
        ),
        # Each unit meets each other one.
        (lambda x: jnp.sin(x[:, :1] - x[:, 0][None]).sum(1), r"\(5, 5\) for 5 units .*reuse=False"),
        # Another program for few units than for many.
        (lambda x: (jnp.sin(x) if len(x) > 3 else x).sum(1), "another program for 5 units than for 2"),
    ],
)
def test_residuals_that_cannot_be_gathered_say_what_to_do(loss_fn, message):
    hard = mine(loss_fn, in_axes=0, reuse=True, **KEEP_TWO)
    with pytest.raises(ValueError, match=message):
        hard(jnp.ones((5, 2)))
