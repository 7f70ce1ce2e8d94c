"""A run of seconds for the loop's tests: `python run_tiny.py WORKDIR STEPS PAUSE` starts or resumes it.

The model is a small convolution with BatchNorm, fitted to random images that a counter makes.
"""

import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.training import (
    Checkpoints,
    OptimizerConfig,
    create_state,
    fit,
    make_optimizer,
    make_schedule,
    make_train_step,
    parallelise,
)

BATCH = 16
CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)


class Net(nn.Module):
    """Images [B,6,6,3] -> [B,4]."""

    axis_name: str | None = None
    width: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(images)
        axis_name = self.axis_name if train else None
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name=axis_name)(x))
        return nn.Dense(4)(x.mean((1, 2)))


class CountingBatches:
    """Batch i is a function of i alone; where it stands is i."""

    def __init__(self, pause=0.0):
        self.index, self.pause = 0, pause

    def __next__(self):
        time.sleep(self.pause)
        self.index += 1
        return batch(self.index - 1)

    def get_state(self):
        return {"index": self.index, "digest": bytes([self.index % 256])}

    def set_state(self, state):
        self.index = state["index"]


def batch(index):
    rng = np.random.default_rng(index)
    images = rng.normal(size=(BATCH, 6, 6, 3)).astype(np.float32)
    noise = rng.normal(size=(BATCH, 4)).astype(np.float32)
    return {"images": images, "targets": images.mean((1, 2))[:, :1] * 3 + 0.1 * noise}


def make_step(axis_name, accumulate=1, **more):
    net = Net(axis_name)

    def loss_fn(params, batch_stats, batch, key, step):
        variables = {"params": params, "batch_stats": batch_stats}
        predicted, new = net.apply(variables, batch["images"], train=True, mutable=["batch_stats"])
        noise = 0.01 * jax.random.normal(key, (4,))
        losses = jnp.square(predicted - batch["targets"] - noise[None])
        return losses.mean(), (new["batch_stats"], {"per_output": losses.mean(0)})

    return make_train_step(loss_fn, axis_name=axis_name, accumulate=accumulate, ema_decay=0.9, **more)


def state(steps, width=8, config=CONFIG):
    net = Net(width=width)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    optimizer = make_optimizer(config, steps=steps)
    return create_state(
        variables, apply_fn=net.apply, optimizer=optimizer, key=jax.random.key(1), ema_decay=0.9
    )


def train(workdir, steps, *, pause=0.0, devices=1, batches=None):
    parallel = parallelise(make_step, devices=jax.devices()[:devices])
    checkpoints, start = Checkpoints(workdir), state(steps)
    batches = batches or CountingBatches(pause)
    restored = checkpoints.restore_latest(start)
    if restored is not None:
        start = restored.state
        batches.set_state(restored.iterator_state)
    result = fit(
        start, parallel=parallel, batches=batches, batch_size=BATCH, steps=steps, workdir=workdir,
        checkpoints=checkpoints, learning_rate=make_schedule(CONFIG, steps=steps), log_every=2,
        checkpoint_every=3,
    )  # fmt: skip
    checkpoints.close()
    return parallel.get(result.state), result


if __name__ == "__main__":
    print("starting", flush=True)
    _, result = train(sys.argv[1], int(sys.argv[2]), pause=float(sys.argv[3]))
    print("stopped" if result.stopped else "finished", result.step, flush=True)
