import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.mining.cpu_products import cpu_products


@jax.custom_vjp
def _doubled(x):
    return 2 * x


_doubled.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))


def _function(params, x):
    """Three products, in all that a product may lie in, and a loop beside them."""
    hidden = jax.nn.relu(x @ params["w"])
    hidden = jax.checkpoint(lambda hidden: jnp.sin(hidden @ params["w"]))(hidden)
    hidden = _doubled(hidden)
    hidden = jax.lax.fori_loop(0, 2, lambda _, hidden: hidden / 2, hidden)
    hidden = jax.nn.gelu(hidden) + jax.jit(lambda hidden: hidden @ params["w"])(hidden)
    return jax.nn.log_softmax(hidden).sum(-1)


def _args(dtype):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(16, 16)) / 4, rng.normal(size=(5, 16))
    return {"w": jnp.asarray(weight, dtype)}, jnp.asarray(x, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_is_the_same_function_rounded_as_before(dtype):
    args = _args(dtype)
    exact = jax.jit(_function)(*_args(jnp.float32))
    for found in (cpu_products(_function)(*args), jax.jit(cpu_products(_function))(*args)):
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=0.02)


def test_float32_changes_in_no_bit():
    args = _args(jnp.float32)
    np.testing.assert_array_equal(jax.jit(cpu_products(_function))(*args), jax.jit(_function)(*args))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers are not asked for it")
@pytest.mark.parametrize("dtype, name", [(jnp.bfloat16, "bf16"), (jnp.float16, "f16")])
def test_every_product_is_one_that_the_cpu_has_a_kernel_for(dtype, name):
    text = jax.jit(cpu_products(_function)).lower(*_args(dtype)).as_text()
    products = re.findall(r"dot_general.*: \((.*), (.*)\) -> (.*)", text)
    assert len(products) == 3
    for left, right, out in products:
        assert f"x{name}>" in left and f"x{name}>" in right and "xf32>" in out


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers are not asked for it")
def test_no_kernel_holds_two_products():
    """Left alone the compiler makes one kernel of this, in which both are slower."""

    def chain(x, weight):
        return jax.nn.relu(jax.nn.relu(x @ weight) @ weight).sum(-1)

    x, weight = jnp.ones((512, 512)), jnp.ones((512, 512))
    text = jax.jit(cpu_products(chain)).lower(x, weight).compile().as_text()
    fused = [part for part in text.split("\n\n") if not part.startswith("ENTRY")]
    assert text.count(" dot(") == 2
    assert max(part.count(" dot(") for part in fused) <= 1
