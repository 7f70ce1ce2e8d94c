import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hardmine_jax.training import create_state, ema_update, evaluation_variables, make_train_step


def linear_loss(params, batch_stats, batch, key, step):
    predicted = batch["x"] @ params["w"]
    losses = jnp.square(predicted - batch["y"])
    return losses.mean(), (batch_stats, {"seen": jnp.int32(3), "per_output": losses.mean(0)})


def linear_state(**kwargs):
    params = {"w": jax.random.normal(jax.random.key(0), (5, 2))}
    key = jax.random.key(1)
    return create_state({"params": params}, apply_fn=None, optimizer=optax.adam(0.1), key=key, **kwargs)


def linear_batch(size=12):
    rng = np.random.default_rng(0)
    return {"x": jnp.asarray(rng.normal(size=(size, 5)), jnp.float32), "y": jnp.ones((size, 2))}


def test_step_is_gradient_and_optimizer_update():
    state, batch = linear_state(), linear_batch()
    new, metrics = make_train_step(linear_loss)(state, batch)
    loss, grads = jax.value_and_grad(lambda p: linear_loss(p, {}, batch, None, 0)[0])(state.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optax.adam(0.1).update(grads, optax.adam(0.1).init(state.params))
    chex.assert_trees_all_close(new.params, optax.apply_updates(state.params, updates), atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grads["w"]), rtol=1e-6)
    assert int(new.step) == 1
    chex.assert_shape(metrics["per_output"], (2,))
    assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_same_input_same_output_and_input_untouched():
    state, batch = linear_state(ema_decay=0.9), linear_batch()
    before = jax.tree.map(np.array, state.params)
    step = jax.jit(make_train_step(linear_loss, ema_decay=0.9))
    first, second = step(state, batch), step(state, batch)
    chex.assert_trees_all_equal(first[0].params, second[0].params)
    chex.assert_trees_all_equal(first[1], second[1])
    chex.assert_trees_all_equal(state.params, before)


@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_accumulation_equals_whole_batch(accumulate):
    whole = jax.jit(make_train_step(linear_loss))(linear_state(), linear_batch())
    parts = jax.jit(make_train_step(linear_loss, accumulate=accumulate))(linear_state(), linear_batch())
    chex.assert_trees_all_close(whole[1], parts[1], rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(whole[0].params, parts[0].params, rtol=1e-6, atol=1e-6)


def test_accumulation_threads_batch_statistics_through_strided_parts():
    def loss_fn(params, batch_stats, batch, key, step):
        return (params["w"] ** 2).sum(), ({"last": batch["i"], "calls": batch_stats["calls"] + 1}, {})

    state = linear_state().replace(batch_stats={"last": jnp.zeros(3, jnp.int32), "calls": jnp.int32(0)})
    new, _ = make_train_step(loss_fn, accumulate=2)(state, {"i": jnp.arange(6)})
    assert int(new.batch_stats["calls"]) == 2
    np.testing.assert_array_equal(new.batch_stats["last"], [1, 3, 5])


def test_key_changes_from_step_to_step_only():
    def loss_fn(params, batch_stats, batch, key, step):
        return (params["w"] ** 2).sum(), (batch_stats, {"draw": jax.random.uniform(key)})

    step, state = make_train_step(loss_fn), linear_state()
    new, first = step(state, linear_batch())
    _, second = step(new, linear_batch())
    assert float(first["draw"]) == float(jax.random.uniform(jax.random.fold_in(state.key, 0)))
    assert float(first["draw"]) != float(second["draw"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_function_is_given_the_step(accumulate):
    def loss_fn(params, batch_stats, batch, key, step):
        return step.astype(jnp.float32) * params["w"].sum(), (batch_stats, {"seen": step})

    step, state = jax.jit(make_train_step(loss_fn, accumulate=accumulate)), linear_state()
    for number in range(3):
        state, metrics = step(state, linear_batch())
        assert int(metrics["seen"]) == number
        assert float(metrics["grad_norm"]) == pytest.approx(number * np.sqrt(state.params["w"].size))


def test_ema_formula():
    state, step = linear_state(ema_decay=0.5), make_train_step(linear_loss, ema_decay=0.5)
    average = np.array(state.params["w"])
    for t in range(1, 12):
        state, _ = step(state, linear_batch())
        d = min(0.5, (1 + t) / (10 + t))
        average = d * average + (1 - d) * np.array(state.params["w"])
    np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)
    chex.assert_trees_all_equal(evaluation_variables(state)["params"], state.ema_params)


def test_ema_of_equal_weights_is_those_weights():
    params = {"w": jnp.float32([0.1, 1e30])}
    with jax.numpy_dtype_promotion("strict"):
        chex.assert_trees_all_equal(ema_update(params, params, jnp.int32(3), decay=0.999), params)


def test_half_precision_parameters_stay_so_and_metrics_are_single():
    def loss_fn(params, batch_stats, batch, key, step):
        return jnp.square(params["w"]).sum(), (batch_stats, {})

    params = {"w": jnp.ones(3, jnp.bfloat16)}
    variables, optimizer = {"params": params}, optax.sgd(0.5)
    state = create_state(variables, apply_fn=None, optimizer=optimizer, key=jax.random.key(0), ema_decay=0.5)
    new, metrics = make_train_step(loss_fn, ema_decay=0.5)(state, {"x": jnp.zeros(4)})
    chex.assert_type([metrics["loss"], metrics["grad_norm"]], jnp.float32)
    chex.assert_type([new.params["w"], new.ema_params["w"]], jnp.bfloat16)


def test_without_ema_evaluation_takes_the_weights():
    state, _ = make_train_step(linear_loss)(linear_state(), linear_batch())
    assert state.ema_params is None
    chex.assert_trees_all_equal(evaluation_variables(state)["params"], state.params)


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match="accumulate=0 < 1"):
        make_train_step(linear_loss, accumulate=0)
    with pytest.raises(ValueError, match="12 examples .* accumulate=5"):
        make_train_step(linear_loss, accumulate=5)(linear_state(), linear_batch())
