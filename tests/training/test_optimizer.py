import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.training import OptimizerConfig, make_optimizer, make_schedule


def rates(steps=100, **fields):
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, **fields), steps=steps)
    return np.array([float(rate(step)) for step in range(steps)])


def test_warm_up_is_linear_and_reaches_the_peak():
    np.testing.assert_allclose(rates(schedule="constant", warmup_steps=4)[:6], [0.25, 0.5, 0.75, 1, 1, 1])


def test_step_schedule_drops_at_milestones():
    r = rates(schedule="step", milestones=(0.5, 0.9), factor=0.1)
    np.testing.assert_allclose(r[[0, 49, 50, 89, 90, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_cosine_falls_from_peak_to_zero():
    r = rates(schedule="cosine", warmup_steps=10)
    assert r[10] == 1.0
    assert (np.diff(r[10:]) < 0).all()
    assert r[-1] < 0.001


def updates(grads, **fields):
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0), "scale": jnp.full(2, 2.0)}
    config = OptimizerConfig(schedule="constant", learning_rate=0.1, **fields)
    optimizer = make_optimizer(config, steps=10)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, grads), params)
    # As in the training step: Adam's own arithmetic is not ours.
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_leaves_biases_and_scales_alone(name):
    u = updates(0.0, name=name, weight_decay=0.5)
    assert (u["kernel"] < 0).all()
    assert (u["bias"] == 0).all() and (u["scale"] == 0).all()


def test_decoupled_decay_is_rate_times_decay_times_weight():
    u = updates(0.0, name="adamw", weight_decay=0.5)
    np.testing.assert_allclose(u["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)


def test_nesterov_momentum():
    np.testing.assert_allclose(updates(1.0, name="sgd", momentum=0.9)["bias"], -0.1 * 1.9, rtol=1e-6)


def test_clip_bounds_the_global_norm():
    u = updates(100.0, name="sgd", momentum=0.0, clip_norm=1.0)
    assert float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(u)))) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "lion"), ("schedule", "linear"), ("learning_rate", 0.0), ("warmup_steps", -1),
        ("milestones", (0.9, 0.5)), ("milestones", (0.5, 1.5)), ("factor", 0.0), ("momentum", 1.0),
        ("weight_decay", -0.1), ("clip_norm", 0.0),
    ],
)  # fmt: skip
def test_errors_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizerConfig(**{field: value})


def test_warm_up_as_long_as_the_run():
    with pytest.raises(ValueError, match="warmup_steps=10 >= steps=10"):
        make_optimizer(OptimizerConfig(warmup_steps=10), steps=10)
