"""`mine` inside jit, vmap, grad, checkpoint, scan, pmap and shard_map, with and without closures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import mine
from hardmine_jax.mining.top_k import top_k

WAYS = [{}, {"chunk": 3}, {"score_dtype": jnp.bfloat16}, {"reuse": True}]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)
NUM_UNITS = 7


def _loss_fn(weight, x, labels):
    # Arguments alone are cast for scoring, and what a loss closes over is not.
    return jnp.square(jnp.sin(x @ weight.astype(x.dtype)) - labels)


def _select(losses, *_):
    return top_k(losses, k=3)


def _problem(rows=()):
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(NUM_UNITS) for _ in range(int(np.prod(rows, dtype=int)))])
    x = rng.normal(size=(*rows, NUM_UNITS, 4)).astype(np.float32)
    weight = rng.normal(size=(*rows, 4)).astype(np.float32)
    # Far apart, so that rounding to bfloat16 reorders nothing.
    return weight, x, 4 * labels.reshape(*rows, NUM_UNITS).astype(np.float32)


def _value_and_grad(way, *, closure=False):
    def loss(weight, x, labels):
        if closure:
            hard = mine(lambda x, labels: _loss_fn(weight, x, labels), _select, capacity=4, in_axes=0, **way)
            mined = hard(x, labels)
        else:
            mined = mine(_loss_fn, _select, capacity=4, in_axes=(None, 0, 0), **way)(weight, x, labels)
        return masked_mean(mined.losses, where=mined.keep)

    return jax.value_and_grad(loss, argnums=(0, 1))


def _masked(weight, x, labels):
    def loss(weight, x):
        losses = _loss_fn(weight, x, labels)
        return masked_mean(losses, where=top_k(losses, k=3))

    return jax.value_and_grad(loss, argnums=(0, 1))(weight, x)


_MASKED = jax.jit(_masked)


def _close(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@every_way
@pytest.mark.parametrize("closure", [False, True])
def test_jit_is_eager_is_masked(way, closure):
    run = _value_and_grad(way, closure=closure)
    eager, compiled, masked = run(*_problem()), jax.jit(run)(*_problem()), _MASKED(*_problem())
    _close(eager, masked)
    _close(compiled, masked)


@every_way
def test_grad_of_jit_is_jit_of_grad(way):
    hard = jax.jit(mine(_loss_fn, _select, capacity=4, in_axes=(None, 0, 0), **way))

    def loss(weight, x, labels):
        mined = hard(weight, x, labels)
        return masked_mean(mined.losses, where=mined.keep)

    _close(jax.value_and_grad(loss, argnums=(0, 1))(*_problem()), _MASKED(*_problem()))


@every_way
@pytest.mark.parametrize("closure", [False, True])
def test_vmap_is_a_loop(way, closure):
    args = _problem(rows=(3,))
    looped = [_MASKED(*row) for row in zip(*args, strict=True)]
    mapped = jax.jit(jax.vmap(_value_and_grad(way, closure=closure)))(*args)
    _close(mapped, jax.tree.map(lambda *rows: jnp.stack(rows), *looped))


@every_way
def test_grad_of_vmap_with_shared_weights(way):
    weight, x, labels = _problem(rows=(3,))
    hard = mine(_loss_fn, _select, capacity=4, in_axes=(None, 0, 0), **way)

    def loss(weight, x):
        mined = jax.vmap(hard, in_axes=(None, 0, 0))(weight, x, labels)
        return masked_mean(mined.losses, where=mined.keep)

    def masked(weight, x):
        losses = jax.vmap(_loss_fn, in_axes=(None, 0, 0))(weight, x, labels)
        return masked_mean(losses, where=top_k(losses, k=3))

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weight[0], x)
    _close(found, jax.jit(jax.value_and_grad(masked, argnums=(0, 1)))(weight[0], x))


@pytest.mark.parametrize("way", [{}, {"chunk": 3}], ids=str)
@pytest.mark.parametrize("closure", [False, True])
def test_only_the_second_run_is_differentiated(way, closure):
    """Neither the first nor `select`: a rule that is called tells how many units it met."""
    seen = []

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def rule(primals, tangents):
        seen.append(primals[0].shape)
        return jnp.sin(*primals), jnp.cos(*primals) * tangents[0]

    def loss_fn(weight, x):
        return sine(x @ weight)

    def select(losses, x):
        return top_k(losses + sine(x[:, 0]), k=3)

    def loss(weight, x):
        if closure:
            return mine(lambda x: loss_fn(weight, x), select, capacity=4, in_axes=0, **way)(x).losses.sum()
        return mine(loss_fn, select, capacity=4, in_axes=(None, 0), **way)(weight, x).losses.sum()

    weight, x, _ = _problem()
    jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(weight, x)
    assert seen == [(4,)]


@every_way
def test_checkpoint_runs_it_again_to_the_same(way):
    hard = mine(_loss_fn, _select, capacity=4, in_axes=(None, 0, 0), **way)

    @jax.checkpoint
    def loss(weight, x, labels):
        mined = hard(weight, x, labels)
        return masked_mean(mined.losses, where=mined.keep)

    _close(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*_problem()), _MASKED(*_problem()))


@every_way
def test_scan_over_batches_with_a_selector_that_follows_a_schedule(way):
    """The threshold is traced and reaches `select` by its closure."""
    weight, x, labels = _problem(rows=(3,))
    levels = jnp.array([0.0, 50.0, 1e6])

    def total(select_from):
        def loss(weight):
            def body(carry, batch):
                level, x, labels = batch
                return carry + select_from(weight, x, labels, level), None

            return jax.lax.scan(body, jnp.float32(0.0), (levels, x, labels))[0]

        return jax.value_and_grad(loss)(weight[0])

    def mined(weight, x, labels, level):
        def select(losses, *_):
            return losses > level

        found = mine(_loss_fn, select, capacity=NUM_UNITS, in_axes=(None, 0, 0), **way)(weight, x, labels)
        return masked_mean(found.losses, where=found.keep)

    def masked(weight, x, labels, level):
        losses = _loss_fn(weight, x, labels)
        return masked_mean(losses, where=losses > level)

    _close(jax.jit(lambda: total(mined))(), jax.jit(lambda: total(masked))())


@every_way
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_eight_devices_are_a_loop(way, kind):
    if jax.device_count() < 8:
        pytest.skip(f"{jax.device_count()} devices, 8 are needed (tests/conftest.py simulates them on CPU)")
    weights, x, labels = _problem(rows=(8,))
    weight = weights[0]
    looped = [_MASKED(weight, *row) for row in zip(x, labels, strict=True)]
    value, (to_weight, to_x) = jax.tree.map(lambda *rows: jnp.stack(rows), *looped)
    hard = mine(_loss_fn, _select, capacity=4, in_axes=(None, 0, 0), **way)

    def local(weight, x, labels):
        mined = hard(weight, x, labels)
        return jax.lax.pmean(masked_mean(mined.losses, where=mined.keep), "data")

    if kind == "pmap":
        run = jax.pmap(jax.value_and_grad(local), axis_name="data", in_axes=(None, 0, 0))
        found_value, found = run(weight, x, labels)
        _close(found_value[0], value.mean())
        _close(found.mean(0), to_weight.mean(0))
        return
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded, replicated = PartitionSpec("data"), PartitionSpec()

    def loss(weight, x, labels):
        return jax.shard_map(
            lambda weight, x, labels: local(weight, x[0], labels[0]),
            mesh=mesh,
            in_specs=(replicated, sharded, sharded),
            out_specs=replicated,
        )(weight, x, labels)

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weight, x, labels)
    _close(found, (value.mean(), (to_weight.mean(0), to_x / 8)))

    def inside(weight, x, labels):
        value, gradient = jax.value_and_grad(local)(weight, x[0], labels[0])
        return value, gradient

    specs = {"mesh": mesh, "in_specs": (replicated, sharded, sharded), "out_specs": replicated}
    _close(jax.jit(jax.shard_map(inside, **specs))(weight, x, labels), (value.mean(), to_weight.mean(0)))


def test_custom_derivatives_inside_the_loss():
    """RoI pooling and the like bring their own backward pass; `reuse` has to find its residuals."""

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, cotangent: (3 * x**2 * cotangent,))

    def loss_fn(weight, x):
        return cube(weight * x)

    x = jnp.arange(1.0, 6.0)
    for way in ({}, {"chunk": 2}, {"reuse": True}):
        hard = mine(loss_fn, lambda losses, x: top_k(losses, k=2), capacity=3, in_axes=(None, 0), **way)

        def loss(weight, x, hard=hard):
            mined = hard(weight, x)
            return masked_mean(mined.losses, where=mined.keep)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.float32(2.0), x)
        _close(gradient, (jnp.float32(12 * (125 + 64) / 2), jnp.array([0.0, 0, 0, 24 * 16 / 2, 24 * 25 / 2])))
        mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(jnp.array([1.0, 2.0]), x)
        _close(mapped, jnp.array([3 * (125 + 64) / 2, 12 * (125 + 64) / 2]))
