"""Losses of detectors, one for each region: [..., N], never reduced over regions.

Labels are integers of any width, 0 for background and 1 .. C for objects; one that is neither makes NaN of
its region's loss. Losses are worked out in float32 (or wider).
"""

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.detection.labels import class_numbers
from hardmine_jax.mining.types import ArrayLike, Scalar, as_floats

# exp(-800) is 0 in float64 as well.
_FAR = 800.0


def fast_rcnn_losses(
    logits: ArrayLike, deltas: ArrayLike, labels: ArrayLike, targets: ArrayLike, *, box_weight: Scalar = 1.0
) -> jax.Array:
    """Cross-entropy, and for objects the smooth L1 distance of the box as well.

    loss = -log softmax(logits)[label] + [label > 0] box_weight * sum over 4 of smooth_l1(deltas - targets)

    Background has no box: its deltas and targets are not looked at. A label below 0 or above C gives NaN, and
    no gradient: left out by `where` it does no harm, and else it is noticed. Fast R-CNN, 1504.08083, section
    2.3, equations 1 to 3.

    Args:
      logits: [..., N, C + 1], background first.
      deltas: [..., N, 4], one box for all classes; or [..., N, C, 4], row label - 1 counts; or
        [..., N, C + 1, 4], row label counts (Fast R-CNN's own layout, whose row 0 is never used).
      labels: int [..., N], 0 .. C. `match` gives them.
      targets: [..., N, 4], `encode_boxes(boxes, matched)`.
      box_weight: lambda of equation 1.

    Returns:
      [..., N], float32 (float64 for float64 logits).

    Raises:
      ValueError: if the shapes do not fit.
      TypeError: if labels are no integers.

    >>> logits, labels = jnp.zeros((2, 3)), jnp.array([0, 2])
    >>> fast_rcnn_losses(logits, jnp.zeros((2, 4)), labels, jnp.full((2, 4), 2.0))
    Array([1.0986123, 7.0986123], dtype=float32)
    """
    (logits,), labels = as_floats(logits), class_numbers(labels)
    deltas, targets = (as_floats(array)[0].astype(logits.dtype) for array in (deltas, targets))
    num_classes = logits.shape[-1] - 1
    if logits.shape[:-1] != labels.shape or targets.shape != (*labels.shape, 4):
        raise ValueError(
            f"logits {logits.shape}, labels {labels.shape} and targets {targets.shape} must be"
            " [..., N, C + 1], [..., N] and [..., N, 4]"
        )
    deltas = _deltas_of_label(deltas, labels, num_classes)
    # NaN comes back at the end: left out by `where`, it would yet make NaN of the gradient.
    known = (logits < jnp.inf).all(axis=-1)
    logits = jnp.where(logits < jnp.inf, logits, 0)
    right = jnp.where(_one_hot(labels, num_classes + 1), logits, 0).sum(axis=-1)
    cross_entropy = jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - right, jnp.nan)
    # Cut before the distance, so that a target that means nothing gives no gradient either.
    difference = jnp.where((labels > 0)[..., None], deltas - targets, 0)
    box_weight = jnp.asarray(box_weight).astype(logits.dtype)
    losses = cross_entropy + box_weight * smooth_l1(difference).sum(axis=-1)
    return _where_known(labels, num_classes, losses)


def smooth_l1(difference: ArrayLike, *, beta: float = 1.0) -> jax.Array:
    """Quadratic near zero, linear beyond `beta`, elementwise.

    smooth_l1(d) = d^2 / (2 beta) if |d| < beta else |d| - beta / 2

    Fast R-CNN, 1504.08083, equation 3, has beta = 1.

    Args:
      difference: [...].
      beta: where the two meet, above 0.

    Returns:
      [...], of the dtype of the difference (float32 for integers), worked out in float32 or wider.

    Raises:
      ValueError: if beta is not positive and finite.

    >>> smooth_l1(jnp.array([0.5, -3.0]))
    Array([0.125, 2.5  ], dtype=float32)
    """
    if not 0 < beta < np.inf:
        raise ValueError(f"beta={beta} must be positive: it is where the parabola ends")
    given = jnp.asarray(difference)
    (known,) = as_floats(given)
    # As in `fast_rcnn_losses`.
    lost = jnp.isnan(known)
    distance = jnp.abs(jnp.where(lost, 0, known))
    # Cut before it is squared: the square of a far one would overflow, and make NaN of its gradient.
    near = jnp.minimum(distance, beta)
    losses = jnp.where(distance < beta, near**2 / (2 * beta), distance - beta / 2)
    losses = jnp.where(lost, jnp.nan, losses)
    return losses.astype(given.dtype) if jnp.issubdtype(given.dtype, jnp.floating) else losses


def focal_losses(
    logits: ArrayLike, labels: ArrayLike, *, alpha: Scalar = 0.25, gamma: Scalar = 2.0
) -> jax.Array:
    """Focal loss of RetinaNet: a yes or no for each class, easy answers weighted down; summed over classes.

    loss_n = sum over c of -alpha_t (1 - p_t)^gamma log p_t,
    p_t = sigmoid(logit_nc) if label_n = c else 1 - sigmoid(logit_nc),  alpha_t = alpha or 1 - alpha alike

    There is no logit for background: it is a no to every class. Finite, with finite gradients, for all finite
    logits. A label below 0 or above C gives NaN, and no gradient. RetinaNet divides the sum over anchors by
    the number of those that show an object: `masked_mean(..., denominator=)`. 1708.02002, section 3.

    Args:
      logits: [..., N, C], column c - 1 for label c.
      labels: int [..., N], 0 .. C.
      alpha: weight of a yes, 0 .. 1.
      gamma: 0 (plain cross-entropies) or more; may be traced.

    Returns:
      [..., N], float32 (float64 for float64 logits).

    Raises:
      ValueError: for gamma < 0, alpha outside 0 .. 1, or shapes that do not fit.
      TypeError: if labels are no integers.

    >>> focal_losses(jnp.array([[0.0, 0.0], [9.0, -9.0]]), jnp.array([0, 1])).round(4)
    Array([0.2599, 0.    ], dtype=float32)
    """
    (logits,), labels = as_floats(logits), class_numbers(labels)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} must be [..., N, C] and [..., N]")
    for name, number, most in (("alpha", alpha, 1), ("gamma", gamma, np.inf)):
        if not isinstance(number, jax.Array) and not 0 <= number <= most:
            raise ValueError(f"{name}={number} must lie in 0 .. {most}")
    alpha, gamma = (jnp.asarray(number).astype(logits.dtype) for number in (alpha, gamma))
    yes = _one_hot(labels - 1, logits.shape[-1])
    given = jnp.where(yes, logits, -logits)
    finite = jnp.isfinite(given)
    right = jnp.where(finite, given, 0)
    # (1 - p_t)^gamma from its logarithm: no power of a number that has rounded to 0.
    # Further out it is 1 or its product 0, and its gradient 0 times infinity, which a clip would let through.
    near = jnp.where(right > _FAR, _FAR, jnp.where(right < -_FAR, -_FAR, right))
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-near))
    losses = jnp.where(yes, alpha, 1 - alpha) * modulation * jax.nn.softplus(-right)
    # The sum of the classes is finite as well; what is taken off has no gradient.
    most = float(jnp.finfo(losses.dtype).max) / (2 * max(1, logits.shape[-1]))
    losses = losses - jax.lax.stop_gradient(jnp.maximum(losses - most, 0))
    losses = jnp.where(finite, losses, jax.lax.stop_gradient(jnp.maximum(-given, 0)))
    return _where_known(labels, logits.shape[-1], losses.sum(axis=-1))


def _where_known(labels: jax.Array, num_classes: int, losses: jax.Array) -> jax.Array:
    """NaN for a label that is no class: a cross-entropy without its right answer has no lower bound."""
    return jnp.where((labels >= 0) & (labels <= num_classes), losses, jnp.nan)


def _one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """bool [..., num_classes]. Sums over it need no gather, whose gradient would be a scatter."""
    classes = jnp.arange(num_classes, dtype=labels.dtype).reshape((1,) * labels.ndim + (-1,))
    return labels[..., None] == classes


def _deltas_of_label(deltas: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Whatever the layout, the four numbers that count: [..., N, 4]."""
    if deltas.shape == (*labels.shape, 4):
        return deltas
    for rows, first in ((num_classes, 1), (num_classes + 1, 0)):
        if deltas.shape == (*labels.shape, rows, 4):
            return jnp.where(_one_hot(labels - first, rows)[..., None], deltas, 0).sum(axis=-2)
    raise ValueError(
        f"deltas of shape {deltas.shape} for labels {labels.shape} and C={num_classes} classes must be"
        " [..., N, 4], [..., N, C, 4] or [..., N, C + 1, 4]"
    )
