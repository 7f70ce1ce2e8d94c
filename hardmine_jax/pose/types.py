"""What the functions of pose take: numbers of any real dtype, and a `where` that is bool."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.mining.types import ArrayLike, as_floats


def check_labelled(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """`where` as a bool array; None for None.

    Raises:
      ValueError: if it is not bool, as a visibility of 0, 1 and 2 is not, or not of that shape.
    """
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != bool or where.shape != shape:
        raise ValueError(
            f"where {where.dtype}{where.shape} must be bool{shape}, True for each keypoint that is labelled, "
            "as in `visibility > 0`"
        )
    return where


def differences(predicted: ArrayLike, target: ArrayLike) -> jax.Array:
    """`predicted - target` [..., K, 2], in float32 or wider.

    Raises:
      ValueError: if they are not points of the same K keypoints.
    """
    predicted, target = as_floats(predicted, target)
    shape = predicted.shape[-2:]
    if len(shape) != 2 or shape[-1] != 2 or target.shape[-2:] != shape:
        raise ValueError(f"predicted {predicted.shape} and target {target.shape} must be [..., K, 2], (x, y)")
    return predicted - target


def floats_alike(array: Any) -> Any:
    """In float32 or wider; numpy stays numpy, jax jax, and a Python number a Python number.

    Raises:
      TypeError: for anything else, a list among it.
    """
    if isinstance(array, jax.Array):
        return as_floats(array)[0]
    if isinstance(array, (int, float)):
        return float(array)
    check_array(array)
    return np.asarray(array, np.result_type(array.dtype, np.float32))


def check_array(array: Any) -> None:
    """Of what decides whether the result is numpy or jax.

    Raises:
      TypeError: for anything else, a list among it.
    """
    if not isinstance(array, (np.ndarray, np.generic, jax.Array)):
        raise TypeError(f"{type(array).__name__}: give a numpy or a jax array, as in `np.asarray(...)`")
