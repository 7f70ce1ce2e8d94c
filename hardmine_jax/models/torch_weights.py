"""Reading a PyTorch `state_dict`: a mapping of names to arrays or tensors. PyTorch itself is not needed."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def take_entries(
    state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, unused: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The named entries as float32 arrays, every one there, of its shape, and nothing left over.

    Args:
      state_dict: name -> array, or anything with PyTorch's `detach().cpu()`.
      shapes: name -> shape in PyTorch's layout, for all entries wanted.
      unused: names that may be there and are not read.

    Raises:
      ValueError: naming all that is missing, extra or of another shape.

    >>> take_entries({"fc.weight": [[1.0]]}, {"fc.weight": (1, 2), "fc.bias": (1,)})
    Traceback (most recent call last):
    ...
    ValueError: this state_dict is of another network: missing fc.bias; fc.weight is (1, 1), not (1, 2)
    """
    arrays = {name: _to_numpy(state_dict[name]) for name in shapes if name in state_dict}
    missing = [name for name in shapes if name not in state_dict]
    extra = [name for name in state_dict if name not in shapes and name not in set(unused)]
    problems = [f"missing {', '.join(missing)}"] if missing else []
    problems += [f"nothing here takes {', '.join(extra)}"] if extra else []
    problems += [
        f"{name} is {array.shape}, not {tuple(shapes[name])}"
        for name, array in arrays.items()
        if array.shape != tuple(shapes[name])
    ]
    if problems:
        raise ValueError(f"this state_dict is of another network: {'; '.join(problems)}")
    return arrays


def conv_kernel(weight: np.ndarray) -> np.ndarray:
    """Convolution `[out, in, H, W] -> [H, W, in, out]`."""
    return weight.transpose(2, 3, 1, 0)


def dense_kernel(weight: np.ndarray, *, maps: int | None = None) -> np.ndarray:
    """Linear layer `[out, in] -> [in, out]`.

    Args:
      maps: if the inputs are feature maps of that many channels, flattened: PyTorch flattens them as
        (channel, row, column), here it is (row, column, channel).
    """
    if maps is None:
        return weight.T
    return weight.reshape(len(weight), maps, -1).transpose(2, 1, 0).reshape(-1, len(weight))


def _to_numpy(entry: Any) -> np.ndarray:
    if hasattr(entry, "detach"):
        entry = entry.detach().cpu().float()
    return np.asarray(entry, np.float32)
