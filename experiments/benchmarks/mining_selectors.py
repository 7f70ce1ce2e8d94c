"""The selectors of single units against what one would otherwise write, and the heatmap loss they serve.

Each function asks one question: numpy arrays of a size in, `timing.Question` out. Losses are drawn without
ties, since most of what people write instead keeps too many of them, or any.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from timing import Question, Way, jax_way, torch_device, torch_way

from hardmine_jax import mining
from hardmine_jax.pose import ohkm

HAS_TORCH = importlib.util.find_spec("torch") is not None


def draw(*shape: int) -> np.ndarray:
    """Losses float32 without ties in a row, heavy-tailed as real ones are."""
    rng = np.random.default_rng(0)
    ranks = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
    return -np.log((ranks + 0.5) / shape[-1]).astype(np.float32)


def top_k(shape: tuple[int, ...], k: int) -> Question:
    """The k hardest of each row."""
    losses = draw(*shape)
    ways = {
        "top_k": jax_way(lambda losses: mining.top_k(losses, k=k), losses),
        "lax.top_k, scattered": jax_way(
            lambda losses: _scattered(losses, jax.lax.top_k(losses, k)[1]), losses
        ),
        "lax.top_k, nothing but": jax_way(
            lambda losses: jax.lax.top_k(losses, k)[1],
            losses,
            answer=lambda indices: _marked(losses.shape, indices),
        ),
        "sort, >= k-th": jax_way(lambda losses: losses >= jnp.sort(losses)[..., -k, None], losses),
        "numpy, argpartition": Way(
            lambda: np.argpartition(losses, -k)[..., -k:], answer=lambda found: _marked(losses.shape, found)
        ),
    }
    if HAS_TORCH:
        import torch

        tensor = torch.tensor(losses, device=torch_device())

        def marked():
            return torch.zeros_like(tensor, dtype=torch.bool).scatter_(-1, tensor.topk(k).indices, True)

        ways |= {
            "torch.topk, scattered": torch_way(marked),
            "torch.topk, nothing but": torch_way(
                lambda: tensor.topk(k).indices, answer=lambda found: _marked(losses.shape, found)
            ),
        }
    return Question(f"top_k, losses {list(shape)}, k={k}", ways)


def _scattered(losses: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.put_along_axis(jnp.zeros(losses.shape, bool), indices, True, axis=-1, inplace=False)


def _marked(shape: tuple[int, ...], indices) -> np.ndarray:
    keep = np.zeros(shape, bool)
    np.put_along_axis(keep, np.asarray(indices), True, axis=-1)
    return keep


def threshold(num_units: int, min_kept: int) -> Question:
    """Pixel mining for segmentation: everything above a loss, and no fewer than min_kept."""
    losses = draw(num_units)
    # One unit in 20 lies above, so that it is min_kept that decides where it is more.
    min_loss = float(-np.log(0.05))

    def by_sort(losses):
        return (losses > min_loss) | (losses >= jnp.sort(losses)[-min_kept])

    ways = {
        "threshold": jax_way(
            lambda losses: mining.threshold(losses, min_loss=min_loss, min_kept=min_kept), losses
        ),
        "sort": jax_way(by_sort, losses),
        "numpy, partition": Way(
            lambda: (losses > min_loss) | (losses >= np.partition(losses, -min_kept)[-min_kept])
        ),
    }
    if HAS_TORCH:
        import torch

        tensor = torch.tensor(losses, device=torch_device())

        def torch_sort():
            return tensor >= min(torch.sort(tensor, descending=True).values[min_kept - 1].item(), min_loss)

        ways["torch.sort"] = torch_way(torch_sort)
    return Question(f"threshold, {num_units:,} units, min_kept={min_kept:,}", ways)


def hard_negatives(batch: int, num_anchors: int) -> Question:
    """SSD: three negatives for each positive of an image."""
    losses = draw(batch, num_anchors)
    rng = np.random.default_rng(1)
    positive = rng.random(losses.shape) < rng.uniform(0, 0.02, (batch, 1))

    def double_argsort(losses, positive):
        negatives = jnp.where(positive, -jnp.inf, losses)
        rank = jnp.argsort(jnp.argsort(-negatives, axis=-1), axis=-1)
        return (rank < 3 * positive.sum(-1, keepdims=True)) & ~positive

    def loop():
        keep = np.zeros(losses.shape, bool)
        for row, theirs, chosen in zip(losses, positive, keep, strict=True):
            negatives = np.flatnonzero(~theirs)
            chosen[negatives[np.argsort(-row[negatives])[: 3 * theirs.sum()]]] = True
        return keep

    ways = {
        "hard_negatives": jax_way(
            lambda losses, positive: mining.hard_negatives(losses, positive=positive), losses, positive
        ),
        "argsort of argsort": jax_way(double_argsort, losses, positive),
        "numpy, loop over images": Way(loop),
    }
    if HAS_TORCH:
        import torch

        tensor, objects = (torch.tensor(array, device=torch_device()) for array in (losses, positive))

        def double_sort():
            order = tensor.masked_fill(objects, -torch.inf).sort(dim=1, descending=True).indices
            return (order.sort(dim=1).indices < 3 * objects.sum(dim=1, keepdim=True)) & ~objects

        ways["PyTorch, sort of sort"] = torch_way(double_sort)
    return Question(f"hard_negatives, losses [{batch}, {num_anchors}], 3:1", ways)


def harder_than_easiest(batch: int, num_keypoints: int) -> Question:
    """SLEAP's keypoint mining."""
    losses = draw(batch, num_keypoints)

    def by_argsort(losses):
        hard = (losses >= 2 * losses.min(-1, keepdims=True)).sum(-1, keepdims=True)
        return jnp.argsort(jnp.argsort(-losses, axis=-1), axis=-1) < jnp.clip(hard, 2, 8)

    def loop():
        keep = np.zeros(losses.shape, bool)
        for row, chosen in zip(losses, keep, strict=True):
            number = min(max((row >= 2 * row.min()).sum(), 2), 8)
            chosen[np.argsort(-row)[:number]] = True
        return keep

    ways = {
        "harder_than_easiest": jax_way(lambda x: mining.harder_than_easiest(x, max_kept=8), losses),
        "argsort of argsort": jax_way(by_argsort, losses),
        "numpy, loop over images": Way(loop),
    }
    return Question(f"harder_than_easiest, losses [{batch}, {num_keypoints}], at most 8", ways)


def random_k(batch: int, num_units: int, k: int) -> Question:
    """A uniform choice: what the ways have in common is only its size."""
    key, losses = jax.random.key(0), np.zeros((batch, num_units), np.float32)

    def permuted(key, losses):
        keys = jax.random.split(key, batch)
        indices = jax.vmap(lambda key: jax.random.permutation(key, num_units)[:k])(keys)
        return _scattered(losses, indices)

    def loop():
        rng = np.random.default_rng(0)
        return _marked(losses.shape, [rng.choice(num_units, k, replace=False) for _ in losses])

    def counts(keep):
        return np.asarray(keep).sum(axis=-1)

    ways = {
        "random_k": jax_way(lambda key, x: mining.random_k(key, x, k=k), key, losses, answer=counts),
        "permutation, scattered": jax_way(permuted, key, losses, answer=counts),
        "numpy, choice a row": Way(loop, answer=counts),
    }
    if HAS_TORCH:
        import torch

        def torch_loop():
            keep = torch.zeros(losses.shape, dtype=torch.bool, device=torch_device())
            for row in keep:
                row[torch.randperm(num_units, device=keep.device)[:k]] = True
            return keep

        ways["torch.randperm a row"] = torch_way(torch_loop, answer=counts)
    return Question(f"random_k, [{batch}, {num_units}], k={k}", ways)


def heatmaps(batch: int, height: int, width: int, num_keypoints: int, k: int) -> Question:
    """OHKM's loss and its gradient to the predicted heatmaps; the plain mean squared error beside it."""
    rng = np.random.default_rng(0)
    shape = (batch, height, width, num_keypoints)
    predicted, target = rng.normal(size=shape).astype(np.float32), rng.random(shape, np.float32)

    def value(found):
        return np.asarray(found[0], np.float32)

    def plain(predicted, target):
        return jnp.square(predicted - target).mean()

    ohkm_way = jax_way(jax.value_and_grad(lambda p, t: ohkm(p, t, k=k)), predicted, target, answer=value)
    expected = value(ohkm_way.run())
    # It cannot agree: it is there to show what the choice costs.
    plain_way = jax_way(jax.value_and_grad(plain), predicted, target, answer=lambda _: expected)
    ways = {"ohkm": ohkm_way, "plain MSE (another loss)": plain_way}
    if HAS_TORCH:
        ways["PyTorch, loop over images"] = torch_way(_torch_ohkm(predicted, target, k), answer=value)
    return Question(f"OHKM, loss + gradient, heatmaps {list(shape)}, k={k}", ways)


def _torch_ohkm(predicted: np.ndarray, target: np.ndarray, k: int):
    """A loop over keypoints, then one over images, as in most training code for OHKM; NCHW."""
    import torch

    x, y = (
        torch.tensor(np.ascontiguousarray(np.moveaxis(array, -1, 1)), device=torch_device())
        for array in (predicted, target)
    )
    x.requires_grad = True

    def run():
        x.grad = None
        errors = torch.stack([((x[:, j] - y[:, j]) ** 2).mean(dim=(1, 2)) for j in range(x.shape[1])], dim=1)
        total = 0.0
        for row in errors:
            total = total + row[torch.topk(row, k, sorted=False).indices].sum() / k
        loss = total / len(errors)
        loss.backward()
        return loss.detach(), x.grad

    return run
