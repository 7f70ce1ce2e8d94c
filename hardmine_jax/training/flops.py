"""Floating-point operations of a training step, counted before the compiler changes them, and what share of a
chip's peak a speed is.

Counted are products, a multiplication and an addition each: those of convolutions and of matrices. The
compiler's own count has the body of a loop once, however often it turns.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.extend

from hardmine_jax.training.peak_flops import DTypeName, peak_flops
from hardmine_jax.training.sharding import Parallel
from hardmine_jax.training.state import TrainState
from hardmine_jax.training.step import Step

# What jax.lax.platform_dependent calls a platform, by what a device calls it.
_ALIASES = {"gpu": ("gpu", "cuda", "rocm")}


def multiply_adds(function: Callable, *operands: Any, platform: str | None = None) -> int:
    """Multiply-adds of the convolutions and matrix products that `function` does on such operands.

    Read from its jaxpr. A product with padding counts, one with the zeros that a transposed convolution puts
    between pixels does not. What `jax.checkpoint` computes a second time counts a second time.

    Args:
      operands: may be shapes only.
      platform: of the branches of `jax.lax.platform_dependent`, that one's, by default JAX's own; where a
        loop hides how many they are, those of the branch with the fewest.

    Raises:
      ValueError: for a loop whose length is not known.

    >>> multiply_adds(lambda a, b: a @ b, jax.ShapeDtypeStruct((2, 3), "float32"), jax.numpy.ones((3, 5)))
    30
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*operands).jaxpr, platform or jax.default_backend())


def step_flops(parallel: Parallel, state: TrainState, batch: Any) -> float | None:
    """Floating-point operations of one step on each device; None where a loop hides how many they are.

    Args:
      parallel: whose step has been called with the like, or it would be traced a second time.
      state, batch: as the step takes them.
    """
    try:
        count = multiply_adds(parallel.train_step, state, batch, platform=_device(parallel).platform)
    except ValueError:
        return None
    # Inside pmap and shard_map a device's own share is seen, under plain jit the whole.
    return 2.0 * count / (parallel.num_devices if parallel.kind == "jit" else 1)


class Utilisation:
    """A step whose operations are counted when it is first called, and its speed as a share of the peak.

    MFU is `operations of a step / (seconds of a step * peak of a device)`, as in PaLM (arXiv 2204.02311,
    appendix B), with what `multiply_adds` counts.

    Args:
      parallel: the compiled step.
      batch_size: examples in a step over all devices.
      dtype: of the computation.
    """

    def __init__(self, parallel: Parallel, *, batch_size: int, dtype: DTypeName):
        self._parallel, self._batch_size = parallel, batch_size
        self._peak = peak_flops(_device(parallel).device_kind, dtype)
        self._flops: float | None = None
        self._counted = False

    def counted(self, step: Step) -> Step:
        """The step, counted once; where the chip's peak is not known the step as it is."""

        def counting(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = step(state, batch)
            if not self._counted:
                self._flops, self._counted = step_flops(self._parallel, state, batch), True
            return state, metrics

        return step if self._peak is None else counting

    def speed(self, images_per_second: float) -> dict[str, float]:
        """`tflops_per_device`, 10^12 operations a second, and `mfu`, 0 to 1; empty where nobody knows."""
        if not self._flops or self._peak is None:
            return {}
        rate = self._flops * images_per_second / self._batch_size
        return {"tflops_per_device": rate / 1e12, "mfu": rate / self._peak}


def _device(parallel: Parallel) -> jax.Device:
    device: jax.Device = parallel.mesh.devices.flat[0]
    return device


def _of_jaxpr(jaxpr: jax.extend.core.Jaxpr, platform: str) -> int:
    return sum(_of_equation(equation, platform) for equation in jaxpr.eqns)


def _of_equation(equation: jax.extend.core.JaxprEqn, platform: str) -> int:
    name, parameters = equation.primitive.name, equation.params
    # jax's own annotation does not say that an array's type has a shape.
    arrays = [cast(Any, variable.aval) for variable in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return int(arrays[-1].size * math.prod(arrays[0].shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = arrays[1]
        features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        products = arrays[-1].size * (kernel.size // features)
        return int(products // math.prod(parameters["lhs_dilation"]))
    if name == "cond" and parameters.get("branches_platforms"):
        return _of_branches(_jaxprs(parameters), parameters["branches_platforms"], platform)
    inner = [_of_jaxpr(jaxpr, platform) for jaxpr in _jaxprs(parameters)]
    if name == "while" and any(inner):
        raise ValueError("a while loop holds products, and how often it turns is not known: write a scan")
    if name == "cond":
        return max(inner)
    return sum(inner) * parameters.get("length", 1)


def _of_branches(jaxprs: list[jax.extend.core.Jaxpr], platforms: Any, platform: str) -> int:
    """The one for the platform; where a loop hides its number, the least of those that are known."""
    known: list[int] = []
    for jaxpr, names in zip(jaxprs, platforms, strict=True):
        own = names is None or set(names) & set(_ALIASES.get(platform, (platform,)))
        try:
            count = _of_jaxpr(jaxpr, platform)
        except ValueError:
            # Products for speed alone, as in suppression by blocks: another platform has none.
            continue
        if own:
            return count
        known.append(count)
    if not known:
        raise ValueError("a while loop holds products, and how often it turns is not known: write a scan")
    return min(known)


def _jaxprs(parameters: dict[str, Any]) -> list[jax.extend.core.Jaxpr]:
    """Those that an equation holds: bodies of loops, branches, functions called."""
    values = [v for value in parameters.values() for v in (value if isinstance(value, tuple) else (value,))]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if isinstance(jaxpr, jax.extend.core.Jaxpr)]
