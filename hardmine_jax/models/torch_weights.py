"""Reading a PyTorch `state_dict`: a mapping of names to arrays or tensors. PyTorch itself is not needed.

The entries may lie one level down, under "state_dict" or "model", as in checkpoints of a training, and all
have `module.` in front, as DataParallel leaves them. `num_batches_tracked` is not read. Names are "published"
names: those of the PyTorch code whose weights people have.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hardmine_jax.errors import UserError

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class WeightsError(UserError):
    """Weights that cannot be read, or are of another network; one line that says what is wrong."""


class WarmStart(NamedTuple):
    """Where a training begins that takes over the weights of another.

    Attributes:
      variables: {"params", "batch_stats"} of the network.
      initial: published names of what kept its initial value.
      unused: names of the entries that nothing here took.
    """

    variables: dict[str, Any]
    initial: tuple[str, ...]
    unused: tuple[str, ...]


class _Entry(NamedTuple):
    """The published counterpart of a leaf: its name, and the order of PyTorch's axes here."""

    name: str
    axes: tuple[int, ...]


def plain_entries(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries under their published names.

    >>> plain_entries({"epoch": 2, "state_dict": {"module.bn.bias": 0.5, "module.bn.num_batches_tracked": 9}})
    {'bn.bias': 0.5}
    """
    # A checkpoint of HRNet has both: "model" is then the network's name.
    for key in ("state_dict", "model"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    wrapped = all(name.startswith("module.") for name in state_dict)
    entries = {name.removeprefix("module.") if wrapped else name: x for name, x in state_dict.items()}
    return {name: x for name, x in entries.items() if name.rpartition(".")[2] != "num_batches_tracked"}


def take_entries(
    state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, unused: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The named entries as float32 arrays, every one there, of its shape, and nothing left over.

    Args:
      state_dict: name -> array, or anything with PyTorch's `detach().cpu()`.
      shapes: name -> shape in PyTorch's layout, for all entries wanted.
      unused: names that may be there and are not read; one that ends in a dot stands for all that begin so.

    Raises:
      WeightsError: naming all that is missing, extra or of another shape.

    >>> take_entries({"fc.weight": [[1.0]]}, {"fc.weight": (1, 2), "fc.bias": (1,)})
    Traceback (most recent call last):
    ...
    hardmine_jax.models.torch_weights.WeightsError: this state_dict is of another network: missing fc.bias;
    fc.weight is (1, 1), not (1, 2)
    """
    arrays, missing, misshaped, extra = _sort_entries(state_dict, shapes)
    _refuse(missing, misshaped, [name for name in extra if not _is_among(name, unused)])
    return arrays


def fill(
    state_dict: Mapping[str, Any],
    variables: Mapping[str, Any],
    name_of: Callable[[tuple[str, ...]], str],
    *,
    transposed: Collection[str] = (),
    unused: Iterable[str] = (),
) -> dict[str, Any]:
    """Variables with the structure of `variables`, every leaf out of the state_dict.

    Args:
      state_dict: as for `take_entries`.
      variables: {"params", "batch_stats"} of arrays, or only their shapes.
      name_of: path of a module, as in ("layer1_0", "conv1") -> its published name.
      transposed: names of the modules that are transposed convolutions.
      unused: as for `take_entries`.

    Raises:
      WeightsError: naming all entries that are missing, extra or of another shape.
    """
    leaves, layout = _layout(variables, name_of, transposed)
    arrays = take_entries(state_dict, _shapes(leaves, layout), unused=unused)
    return _unflatten({path: _turn(arrays[entry.name], entry) for path, entry in layout.items()})


def fill_what_fits(
    state_dict: Mapping[str, Any],
    variables: Mapping[str, Any],
    name_of: Callable[[tuple[str, ...]], str],
    *,
    optional: Iterable[str],
    transposed: Collection[str] = (),
    unused: Iterable[str] = (),
) -> WarmStart:
    """`fill`, but parts may keep their initial value.

    Args:
      state_dict, variables, name_of, transposed, unused: as for `fill`; `variables` are arrays.
      optional: published names, as in `unused`, of what may be missing or of another shape.

    Raises:
      WeightsError: naming the entries that are missing, extra or of another shape; if not one fits.
    """
    optional = tuple(optional)
    leaves, layout = _layout(variables, name_of, transposed)
    arrays, missing, misshaped, extra = _sort_entries(state_dict, _shapes(leaves, layout))
    _refuse(
        [name for name in missing if not _is_among(name, optional)],
        {name: text for name, text in misshaped.items() if not _is_among(name, optional)},
        [name for name in extra if not _is_among(name, (*unused, *optional))],
    )
    if not arrays:
        raise WeightsError(f"none of the {len(layout)} entries of this network is there, but {_some(extra)}")
    filled = {
        path: _turn(arrays[entry.name], entry) if entry.name in arrays else leaves[path]
        for path, entry in layout.items()
    }
    initial, unused = sorted({*missing, *misshaped}), sorted({*extra, *misshaped})
    return WarmStart(_unflatten(filled), tuple(initial), tuple(unused))


def init_shapes(model: nn.Module, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """Shapes of the variables of a network of images, whose height and width are `size`."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count_children(names: Iterable[str], prefix: str) -> int:
    """How many numbered modules the entries have below `prefix`.

    >>> count_children(["layer1.0.conv1.weight", "layer1.0.bn1.bias", "layer1.1.bn1.bias"], "layer1.")
    2
    """
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def leading_sizes(entries: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """Length of the first axis of the entries that are there.

    >>> leading_sizes({"fc.weight": np.zeros((10, 64))}, {"classes": "fc.weight", "width": "conv1.weight"})
    {'classes': 10}
    """
    shapes = {field: np.shape(entries[name]) for field, name in names.items() if name in entries}
    return {field: shape[0] for field, shape in shapes.items() if shape}


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


def _layout(
    variables: Mapping[str, Any], name_of: Callable[[tuple[str, ...]], str], transposed: Collection[str]
) -> tuple[dict[tuple[str, ...], Any], dict[tuple[str, ...], _Entry]]:
    """Leaves and published entries by path."""
    leaves = flax.traverse_util.flatten_dict(dict(variables))
    layout = {}
    for path, leaf in leaves.items():
        # BatchNorm of models/layers.py wraps flax's, which is called "norm".
        module = tuple(part for part in path[1:-1] if part != "norm")
        axes = (2, 3, 0, 1) if module[-1] in transposed else (2, 3, 1, 0)
        name = f"{name_of(module)}.{_LEAVES[path[-1]]}"
        layout[path] = _Entry(name, {1: (0,), 2: (1, 0), 4: axes}[len(leaf.shape)])
    return leaves, layout


def _shapes(leaves: Mapping[Any, Any], layout: Mapping[Any, _Entry]) -> dict[str, tuple[int, ...]]:
    """Shapes in PyTorch's layout by published name."""
    shapes = {}
    for path, (name, axes) in layout.items():
        shapes[name] = tuple(leaves[path].shape[axes.index(axis)] for axis in range(len(axes)))
    return shapes


def _turn(array: np.ndarray, entry: _Entry) -> jax.Array:
    return jnp.asarray(array.transpose(entry.axes))


def _unflatten(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(dict(leaves))


def _sort_entries(
    state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str], dict[str, str], list[str]]:
    """Arrays that fit, names that are missing, those of another shape with both shapes, names left over."""
    entries = plain_entries(state_dict)
    arrays, misshaped = {}, {}
    for name, shape in shapes.items():
        if name not in entries:
            continue
        found = tuple(np.shape(entries[name]))
        if found == tuple(shape):
            arrays[name] = _to_numpy(entries[name])
        else:
            misshaped[name] = f"{name} is {found}, not {tuple(shape)}"
    missing = [name for name in shapes if name not in entries]
    return arrays, missing, misshaped, [name for name in entries if name not in shapes]


def _refuse(missing: Collection[str], misshaped: Mapping[str, str], extra: Collection[str]) -> None:
    problems = [f"missing {_some(missing)}"] if missing else []
    problems += [f"nothing here takes {_some(extra)}"] if extra else []
    problems += [_some(misshaped.values(), "; ")] if misshaped else []
    if problems:
        raise WeightsError(f"this state_dict is of another network: {'; '.join(problems)}")


def _some(names: Collection[str], separator: str = ", ") -> str:
    """All of a few, the first of many."""
    shown = separator.join(list(names)[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _is_among(name: str, group: Iterable[str]) -> bool:
    return any(name == one or one.endswith(".") and name.startswith(one) for one in group)


def _to_numpy(entry: Any) -> np.ndarray:
    if hasattr(entry, "detach"):
        entry = entry.detach().cpu().float()
    return np.asarray(entry, np.float32)
