"""Losses against plain transcriptions, torch where installed, and numerical gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hardmine_jax.detection import fast_rcnn_losses, focal_losses, smooth_l1
from hardmine_jax.mining import masked_mean

N, C = 12, 3


def _example(rows: str = "C") -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    between = {"": (), "C": (C,), "C+1": (C + 1,)}[rows]
    labels = rng.permutation(np.arange(N) % (C + 1))
    deltas, targets = (rng.normal(0, 2, (N, *axis, 4)).astype(np.float32) for axis in (between, ()))
    return rng.normal(0, 3, (N, C + 1)).astype(np.float32), deltas, labels, targets


def _fast_rcnn_by_loop(logits, deltas, labels, targets, first):
    losses = []
    for row, label in enumerate(labels):
        exponents = np.exp(logits[row].astype(np.float64))
        loss = -np.log(exponents[label] / exponents.sum())
        if label > 0:
            predicted = deltas[row] if first is None else deltas[row][label - first]
            for difference in predicted.astype(np.float64) - targets[row]:
                distance = abs(difference)
                loss += 0.5 * distance**2 if distance < 1 else distance - 0.5
        losses.append(loss)
    return losses


@pytest.mark.parametrize("rows, first", [("", None), ("C", 1), ("C+1", 0)])
def test_fast_rcnn_losses_are_the_plain_loop(rows, first):
    example = _example(rows)
    losses = jax.jit(fast_rcnn_losses)(*example)
    chex.assert_shape(losses, (N,))
    chex.assert_type(losses, jnp.float32)
    np.testing.assert_allclose(losses, _fast_rcnn_by_loop(*example, first), rtol=1e-5)


def test_fast_rcnn_losses_and_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="the comparison with PyTorch needs torch")
    logits, deltas, labels, targets = _example()
    a, b = (torch.tensor(array, requires_grad=True) for array in (logits, deltas))
    at = torch.tensor(labels)
    foreground = torch.nonzero(at > 0)[:, 0]
    loss = torch.nn.functional.cross_entropy(a, at, reduction="sum")
    chosen = b[foreground, at[foreground] - 1]
    distance = torch.nn.functional.smooth_l1_loss(chosen, torch.tensor(targets)[foreground], reduction="sum")
    loss = loss + 0.5 * distance
    loss.backward()

    def total(logits, deltas):
        return fast_rcnn_losses(logits, deltas, labels, targets, box_weight=0.5).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(logits, deltas)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, (a, b), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", ["", "C", "C+1"])
def test_gradient_of_fast_rcnn_losses(rows):
    logits, deltas, labels, targets = _example(rows)

    @jax.jit
    def losses(logits, deltas):
        return fast_rcnn_losses(logits, deltas, labels, targets)

    check_grads(losses, (logits, deltas), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_background_has_no_box():
    logits, deltas, labels, targets = _example()
    dirty = np.where((labels > 0)[:, None], targets, np.float32(np.nan))
    only_background = np.where((labels > 0)[:, None, None], deltas, np.float32(np.inf))

    @jax.jit
    @jax.value_and_grad
    def total(deltas, targets):
        return fast_rcnn_losses(logits, deltas, labels, targets).sum()

    value, gradient = total(deltas, targets)
    for args in ((deltas, dirty), (only_background, dirty)):
        chex.assert_trees_all_equal(total(*args), (value, gradient))
    np.testing.assert_array_equal(gradient[labels == 0], 0)
    # Of the rows of an object only its own.
    moved = np.any(np.asarray(gradient) != 0, axis=-1)
    np.testing.assert_array_equal(moved, np.arange(1, C + 1) == labels[:, None])


def test_padded_rows_are_finite():
    logits, deltas = np.zeros((N, C + 1), np.float32), np.zeros((N, 4), np.float32)
    labels, targets = np.zeros(N, np.int32), np.zeros((N, 4), np.float32)
    nobody = np.zeros(N, bool)

    def loss(logits, deltas):
        return masked_mean(fast_rcnn_losses(logits, deltas, labels, targets), where=nobody)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(logits, deltas)
    assert value == 0
    chex.assert_trees_all_equal(gradients, (np.zeros_like(logits), np.zeros_like(deltas)))
    assert np.isfinite(fast_rcnn_losses(logits * 0 + 1e30, deltas, labels, targets)).all()


def test_leading_axes_and_vmap():
    example = _example()
    both = jax.jit(lambda *args: (fast_rcnn_losses(*args), focal_losses(args[0][..., 1:], args[2])))
    flat = both(*example)
    stacked = jax.tree.map(lambda array: array.reshape(3, N // 3, *array.shape[1:]), example)
    for batched in (both(*stacked), jax.jit(jax.vmap(both))(*stacked)):
        chex.assert_trees_all_close(jax.tree.map(jnp.ravel, batched), flat, rtol=1e-6)


def test_16_bit_logits_are_worked_out_in_float32():
    logits, deltas, labels, targets = _example()
    half = jnp.asarray(logits, jnp.bfloat16)
    losses = fast_rcnn_losses(half, deltas, labels, targets)
    chex.assert_type([losses, focal_losses(half[:, 1:], labels)], jnp.float32)
    chex.assert_trees_all_equal(losses, fast_rcnn_losses(half.astype(jnp.float32), deltas, labels, targets))


def test_16_bit_distances_are_worked_out_in_float32():
    logits, deltas, labels, targets = _example("")
    half = [jnp.asarray(array, jnp.bfloat16) for array in (deltas, targets)]
    distance = half[0].astype(jnp.float32) - half[1].astype(jnp.float32)
    expected = fast_rcnn_losses(logits, distance, labels, np.zeros_like(targets))
    np.testing.assert_allclose(fast_rcnn_losses(logits, half[0], labels, half[1]), expected, rtol=1e-6)


def test_plain_lists_do():
    logits, deltas, labels, targets = _example("")
    lists = [array.tolist() for array in (logits, deltas, labels, targets)]
    chex.assert_trees_all_equal(fast_rcnn_losses(*lists), fast_rcnn_losses(logits, deltas, labels, targets))
    chex.assert_trees_all_equal(focal_losses(lists[0], lists[2]), focal_losses(logits, labels))


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 3.0])
def test_smooth_l1(beta):
    differences = np.linspace(-5, 5, 101, dtype=np.float32)
    distance = np.abs(differences.astype(np.float64))
    expected = np.where(distance < beta, distance**2 / 2 / beta, distance - beta / 2)
    losses, gradient = jax.jit(jax.vmap(jax.value_and_grad(lambda d: smooth_l1(d, beta=beta))))(differences)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, np.clip(differences / beta, -1, 1), rtol=1e-5, atol=1e-6)


def test_smooth_l1_of_far_and_of_no_distance():
    far = np.array([0.0, 1.0, -1.0, 3e38, -np.inf], np.float32)
    np.testing.assert_allclose(smooth_l1(far), [0, 0.5, 0.5, 3e38, np.inf])
    np.testing.assert_allclose(jax.vmap(jax.grad(smooth_l1))(far), [0, 1, -1, 1, -1])
    with pytest.raises(ValueError, match="beta=nan"):
        smooth_l1(far, beta=float("nan"))
    with pytest.raises(ValueError, match="beta=0"):
        smooth_l1(far, beta=0)


def _focal_by_loop(logits, labels, alpha, gamma):
    losses = np.zeros(len(labels))
    for row, label in enumerate(labels):
        for column, logit in enumerate(logits[row].astype(np.float64)):
            p = 1 / (1 + np.exp(-logit))
            right, weight = (p, alpha) if label == column + 1 else (1 - p, 1 - alpha)
            losses[row] -= weight * (1 - right) ** gamma * np.log(right)
    return losses


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.75, 0.5), (0.25, 5.0)])
def test_focal_losses_are_the_plain_loop(alpha, gamma):
    logits, _, labels, _ = _example()
    losses = jax.jit(lambda *args: focal_losses(*args, alpha=alpha, gamma=gamma))(logits[:, 1:], labels)
    np.testing.assert_allclose(losses, _focal_by_loop(logits[:, 1:], labels, alpha, gamma), rtol=1e-5)


def test_focal_losses_of_the_yes_and_of_the_no_are_both_halves():
    """alpha may be 0 and 1."""
    logits, _, labels, _ = _example()
    yes, no, half = (focal_losses(logits[:, 1:], labels, alpha=alpha) for alpha in (1, 0, 0.5))
    np.testing.assert_allclose(yes + no, 2 * half, rtol=1e-6)
    assert not yes[labels == 0].any() and (no > 0).all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_losses_and_gradients_are_those_of_torch(gamma):
    torch = pytest.importorskip("torch", reason="the comparison with PyTorch needs torch")
    logits, _, labels, _ = _example()
    logits = logits[:, 1:]
    x = torch.tensor(logits, requires_grad=True)
    yes = torch.nn.functional.one_hot(torch.tensor(labels), C + 1)[:, 1:].float()
    p = torch.sigmoid(x)
    ce = torch.nn.functional.binary_cross_entropy_with_logits(x, yes, reduction="none")
    weight = yes * 0.25 + (1 - yes) * 0.75
    theirs = (weight * (1 - (p * yes + (1 - p) * (1 - yes))) ** gamma * ce).sum(dim=1)
    theirs.sum().backward()
    value, gradient = jax.jit(jax.value_and_grad(lambda x: focal_losses(x, labels, gamma=gamma).sum()))(
        logits
    )
    np.testing.assert_allclose(value, theirs.sum().item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_losses_of_large_logits(gamma):
    logits = np.array([[500.0, -500.0], [-500.0, 500.0], [3e38, -3e38], [0.0, 0.0]], np.float32)
    labels = np.array([1, 1, 1, 0])

    def total(logits):
        losses = focal_losses(logits, labels, gamma=gamma)
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits)
    np.testing.assert_allclose(losses[:3], [0, 500 * 0.25 + 500 * 0.75, 0], rtol=1e-6)
    np.testing.assert_allclose(gradient[:3], [[0, 0], [-0.25, 0.75], [0, 0]], atol=1e-6)
    assert np.isfinite(gradient).all()


def test_gradient_of_focal_losses():
    logits, _, labels, _ = _example()
    check_grads(
        jax.jit(lambda x: focal_losses(x, labels)), (logits[:, 1:],), order=2, modes=["rev"], rtol=2e-2
    )


def test_refusals():
    logits, deltas, labels, targets = _example()
    with pytest.raises(ValueError, match=r"logits \(12, 4\), labels \(11,\) and targets \(12, 4\)"):
        fast_rcnn_losses(logits, deltas, labels[1:], targets)
    with pytest.raises(ValueError, match=r"deltas of shape \(12, 2, 4\) for labels \(12,\) and C=3"):
        fast_rcnn_losses(logits, deltas[:, 1:], labels, targets)
    with pytest.raises(ValueError, match="gamma=-1"):
        focal_losses(logits, labels, gamma=-1)
    with pytest.raises(ValueError, match=r"alpha=1.5 must lie in 0 .. 1"):
        focal_losses(logits, labels, alpha=1.5)
