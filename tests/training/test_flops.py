"""Operations of a step against arithmetic on paper, however it is run; nothing is said of unknown chips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import ohem
from hardmine_jax.training import fit, flops, parallelise, read_metrics
from hardmine_jax.training.flops import Utilisation, multiply_adds, step_flops
from hardmine_jax.training.metrics_log import mean_speeds
from hardmine_jax.training.progress import show_progress

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _tiny_multiply_adds(tiny):
    # A padded 3x3 convolution of 6x6 pixels, 3 -> 8 channels; 8 -> 4. Of both the gradient of the weights,
    # of the second that of its inputs too.
    convolution, dense = 6 * 6 * 9 * 3 * 8, 8 * 4
    return tiny.BATCH * (2 * convolution + 3 * dense)


@pytest.mark.parametrize("kind, devices", [("jit", 1), ("jit", 4), ("shard_map", 4), ("pmap", 4)])
def test_a_step_is_counted_on_each_device(tiny, kind, devices):
    parallel = parallelise(tiny.make_step, kind=kind, devices=jax.devices()[:devices])
    state, batch = parallel.put_state(tiny.state(5)), parallel.put_batch(tiny.batch(0))
    assert step_flops(parallel, state, batch) == 2 * _tiny_multiply_adds(tiny) / devices


def test_micro_batches_are_each_counted(tiny):
    parallel = parallelise(lambda axis: tiny.make_step(axis, 4), kind="jit", devices=jax.devices()[:1])
    state, batch = parallel.put_state(tiny.state(5)), parallel.put_batch(tiny.batch(0))
    assert step_flops(parallel, state, batch) == 2 * _tiny_multiply_adds(tiny)


def test_zeros_between_pixels_are_no_work():
    """The gradient of a strided convolution's inputs takes as many products as the convolution."""
    kernel, images = jnp.ones((3, 3, 2, 4)), jnp.ones((1, 8, 8, 2))

    def strided(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=DIMENSIONS
        )

    forward = multiply_adds(strided, images, kernel)
    assert forward == 4 * 4 * 4 * 9 * 2
    gradients = jax.grad(lambda *args: strided(*args).sum(), argnums=(0, 1))
    assert multiply_adds(gradients, images, kernel) == 3 * forward


def test_of_a_platform_s_branches_its_own_is_counted():
    def either(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x @ x, cuda=lambda x: x @ x, default=lambda x: x
        )

    counts = {name: multiply_adds(either, jnp.ones((3, 3)), platform=name) for name in ("cpu", "gpu", "tpu")}
    assert counts == {"cpu": 54, "gpu": 27, "tpu": 0}
    assert (
        multiply_adds(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), jnp.ones((3, 3)))
        == 27
    )


def test_a_loop_of_unknown_length_is_no_number(tiny):
    def make_step(axis):
        def step(state, batch):
            return state, {
                "loss": jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, jnp.ones((2, 2)))
            }

        return step

    parallel = parallelise(make_step, kind="jit", devices=jax.devices()[:1])
    assert step_flops(parallel, parallel.put_state(tiny.state(5)), parallel.put_batch(tiny.batch(0))) is None


def _utilisation(tiny, **more):
    parallel = parallelise(tiny.make_step, devices=jax.devices()[:1])
    return parallel, Utilisation(parallel, batch_size=tiny.BATCH, dtype="float32", **more)


def test_of_an_unknown_chip_nothing_is_said_and_nothing_counted(tiny):
    parallel, use = _utilisation(tiny)
    assert use.counted(parallel.train_step) is parallel.train_step
    assert use.speed(100.0) == {}


def test_the_share_of_a_known_peak_is_logged_and_shown(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(flops, "peak_flops", lambda kind, dtype: 1e9)
    parallel, use = _utilisation(tiny)
    use.counted(parallel.train_step)(parallel.put_state(tiny.state(5)), parallel.put_batch(tiny.batch(0)))
    speed = use.speed(1000.0)
    assert speed["mfu"] == pytest.approx(2 * _tiny_multiply_adds(tiny) / tiny.BATCH * 1000 / 1e9)
    assert speed["tflops_per_device"] == pytest.approx(speed["mfu"] * 1e-3)

    running = {
        "parallel": parallel,
        "batches": tiny.CountingBatches(),
        "batch_size": tiny.BATCH,
        "speed": use.speed,
    }
    fit(tiny.state(4), steps=4, workdir=tmp_path, log_every=1, **running)
    first, *lines = read_metrics(tmp_path / "metrics.jsonl")
    assert "mfu" not in first and "TFLOP/s a chip, MFU " in capsys.readouterr().out
    for line in lines:
        assert line["mfu"] == pytest.approx(use.speed(line["images_per_second"])["mfu"])
    means = mean_speeds([first, *lines])
    assert means["mfu"] == pytest.approx(use.speed(means["images_per_second"])["mfu"], rel=1e-4)
    assert set(mean_speeds([first])) == {"images_per_second"}


def test_progress_says_it_in_a_line(capsys):
    values = {"loss": 0.5, "images_per_second": np.float64(1234.5), "tflops_per_device": 93.25, "mfu": 0.094}
    with show_progress(0, 10, batch_size=8) as show:
        show(2, values)
    assert capsys.readouterr().out.startswith(
        "step 2/10  loss 0.5  1,234 images/s  93.2 TFLOP/s a chip, MFU 9.4%"
    )


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_products_of_a_choice_are_no_work_of_the_step(platform):
    """Suppression by blocks has some for speed, in a loop that ends when it is done."""

    def loss(weights, features, boxes):
        losses = jnp.square(features @ weights)
        return jnp.where(ohem(losses, boxes, k=8), losses, 0.0).sum()

    weights, features, boxes = jnp.ones(4), jnp.ones((300, 4)), jnp.ones((300, 4))
    assert multiply_adds(loss, weights, features, boxes, platform=platform) == 300 * 4
