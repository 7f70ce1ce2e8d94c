"""A training step of the published networks at their published size, on whatever machine this is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.models import CPN, Hourglass, HRNet
from hardmine_jax.pose import encode_heatmaps, heatmap_mse


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, sides",
    [(CPN(50), (256, 192)), (Hourglass(8), (256, 256)), (HRNet(32), (256, 192))],
    ids=["CPN-50", "Hourglass-8", "HRNet-W32"],
)
def test_a_training_step(model, sides, random_variables):
    """Losses and gradients are finite, and the loss is lower after a small step along them."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, *sides, 3)), jnp.float32)
    size = tuple(side // 4 for side in sides)
    keypoints = rng.uniform(0.0, min(size), (2, model.num_keypoints, 2))
    targets = encode_heatmaps(jnp.asarray(keypoints, jnp.float32), size=size, sigma=2.0)
    variables = random_variables(model, images)

    def loss_fn(params):
        run = {**variables, "params": params}
        heatmaps, _ = model.apply(run, images, train=True, mutable=["batch_stats"])
        return sum(heatmap_mse(maps, targets).mean() for maps in jax.tree.leaves(heatmaps))

    step = jax.jit(jax.value_and_grad(loss_fn))
    loss, gradients = step(variables["params"])
    norm = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(gradients)))
    assert np.isfinite(loss) and np.isfinite(norm) and norm > 0
    rate = 0.01 * float(loss) / norm**2
    after = jax.tree.map(lambda x, gradient: x - rate * gradient, variables["params"], gradients)
    assert step(after)[0] < loss
