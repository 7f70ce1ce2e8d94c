"""What compiled programs cost, by the compiler's own account. Times: experiments/benchmarks/mining.py."""

import jax
import jax.numpy as jnp
import pytest

from hardmine_jax.mining.masked_mean import masked_mean
from hardmine_jax.mining.mine import mine
from hardmine_jax.mining.top_k import top_k

NUM_UNITS, K = 2000, 64
SIZES = (6272, 1024, 1024, 21)


def _head(params, features, labels):
    x = features
    for layer, (weight, bias) in enumerate(params):
        x = x @ weight + bias[None]
        x = jax.nn.relu(x) if layer < len(params) - 1 else jax.nn.log_softmax(x)
    return -jnp.take_along_axis(x, labels[:, None], axis=1)[:, 0]


def _shapes():
    pairs = zip(SIZES[:-1], SIZES[1:], strict=True)
    params = [
        (jax.ShapeDtypeStruct((i, o), jnp.float32), jax.ShapeDtypeStruct((o,), jnp.float32)) for i, o in pairs
    ]
    features = jax.ShapeDtypeStruct((NUM_UNITS, SIZES[0]), jnp.float32)
    return params, features, jax.ShapeDtypeStruct((NUM_UNITS,), jnp.int32)


def _select(losses, *_):
    return top_k(losses, k=K)


def _masked(params, features, labels):
    losses = _head(params, features, labels)
    return masked_mean(losses, where=_select(losses))


def _mined(**way):
    hard = mine(_head, _select, capacity=K, in_axes=(None, 0, 0), **way)

    def loss(params, features, labels):
        mined = hard(params, features, labels)
        return masked_mean(mined.losses, where=mined.keep)

    return loss


def _compiled(loss):
    """Nothing is run: the shapes are enough to compile."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*_shapes()).compile()


def _temporary(compiled) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def masked():
    return _compiled(_masked)


@pytest.mark.parametrize("way, least", [({}, 2.70), ({"reuse": True}, 2.80)], ids=["two-pass", "reuse"])
def test_work_is_saved(masked, way, least):
    """By the limits 3N / (N + 3k) = 2.74 and 3N / (N + 2k) = 2.82."""
    mined = _compiled(_mined(**way))
    ratio = masked.cost_analysis()["flops"] / mined.cost_analysis()["flops"]
    assert ratio >= least
    if not way:
        assert _temporary(masked) >= 2 * _temporary(mined)


def test_a_chunk_bounds_the_memory_of_the_first_run():
    def temporary(chunk):
        # A sort, because a chain of matrix products is fused on CPU, and its memory in no account.
        hard = mine(lambda x: jnp.sort(x, axis=1)[:, -9], _select, capacity=K, in_axes=0, chunk=chunk)
        features = jax.ShapeDtypeStruct((NUM_UNITS, 1024), jnp.float32)
        return _temporary(jax.jit(hard).lower(features).compile())

    whole, chunked, one = temporary(None), temporary(100), temporary(1)
    assert whole >= NUM_UNITS * 1024 * 4
    # What stays is the second run on k units.
    assert max(chunked, one) <= 2.2 * (100 + K) * 1024 * 4


def test_the_first_run_holds_nothing_for_a_gradient_to_a_closure():
    def loss(params, features, labels):
        hard = mine(lambda x, y: _head(params, x, y), _select, capacity=K, in_axes=0)
        mined = hard(features, labels)
        return masked_mean(mined.losses, where=mined.keep)

    in_closure, as_argument = _compiled(loss), _compiled(_mined())
    assert in_closure.cost_analysis()["flops"] <= 1.001 * as_argument.cost_analysis()["flops"]
    assert _temporary(in_closure) <= 1.01 * _temporary(as_argument)


def test_rows_and_indices_need_no_dense_gradient_and_no_second_run_here():
    """The recipe of the docstring: only `indices` and `keep` are used, so jit drops the rest."""
    hard = mine(_head, _select, capacity=K, in_axes=(None, 0, 0))

    @jax.jit
    def by_rows(params, features, labels):
        mined = hard(params, features, labels)
        rows, theirs = features[mined.indices], labels[mined.indices]

        def loss(params, rows):
            return masked_mean(_head(params, rows, theirs), where=mined.keep)

        return mined.indices, jax.value_and_grad(loss, argnums=(0, 1))(params, rows)

    compiled = by_rows.lower(*_shapes()).compile()
    dense = _compiled(_mined())
    assert compiled.cost_analysis()["flops"] <= dense.cost_analysis()["flops"]
    saved = (NUM_UNITS - K) * SIZES[0] * 4
    memory = [each.memory_analysis().output_size_in_bytes for each in (dense, compiled)]
    assert memory[0] - memory[1] > 0.99 * saved
