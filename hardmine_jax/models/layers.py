"""Convolution, transposed convolution, normalisation and upsampling as the published networks define them.

Layout NHWC, kernels HWIO, parameters float32; `dtype` is the type of the computation. Padding is PyTorch's
(`k // 2` on both sides), which for an even side and stride 2 is not XLA's "SAME".
"""

from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

_Block = TypeVar("_Block", bound=nn.Module)

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]`, odd square kernel.

    A 1x1 kernel is a matrix product: XLA:CPU trains that about 1.4 times faster than the convolution, and TPU
    v5e needs 0.65 of its cycles (64 to 256 channels of 64 x 48 pixels, bfloat16).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, images.shape[-1], self.features))
        images, kernel = images.astype(self.dtype), kernel.astype(self.dtype)
        if size == 1:
            outputs = images[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        else:
            padding = (size // 2, size // 2)
            outputs = jax.lax.conv_general_dilated(
                images, kernel, (self.stride,) * 2, (padding,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            outputs = outputs + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return outputs


class DoubleConvTranspose(nn.Module):
    """`[B, H, W, C] -> [B, 2H, 2W, features]`: transposed convolution, 4x4 kernel, stride 2, padding 1.

    out[2h + i - 1, 2w + j - 1] += in[h, w] @ kernel[i, j]
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (4, 4, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        images = images.astype(self.dtype)
        # v5e, value and gradient of [32, 32, 24, 256] in bfloat16: dilated 1,386 us, by overlap-add 5,395.
        return jax.lax.platform_dependent(images, kernel, cpu=_by_overlap_add, default=_by_dilation)


def _by_dilation(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transposed convolution as the convolution, by the kernel turned round, of images with gaps."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=layout
    )


def _by_overlap_add(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product and the overlap-add of its 16 maps, four to each parity of the output.

    XLA:CPU's gradient of the transposed convolution is a naive loop, 5 to 7 times slower.
    """
    batch, height, width, _ = images.shape
    products = jnp.einsum("bhwc,ijcf->ijbhwf", images, kernel)
    # Along each axis an even output takes kernel row 1 here and row 3 of the pixel before; an odd one
    # takes row 2 here and row 0 of the pixel after.
    rows = [products[1] + _shift(products[3], 1, axis=2), products[2] + _shift(products[0], -1, axis=2)]
    parts = [[r[1] + _shift(r[3], 1, axis=2), r[2] + _shift(r[0], -1, axis=2)] for r in rows]
    outputs = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)
    return outputs.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _shift(maps: jax.Array, by: int, *, axis: int) -> jax.Array:
    """`maps` moved by one along `axis`, zeros coming in."""
    pad = [(0, 0)] * maps.ndim
    pad[axis] = (1, 0) if by == 1 else (0, 1)
    length = maps.shape[axis]
    start = 0 if by == 1 else 1
    return jax.lax.slice_in_dim(jnp.pad(maps, pad), start, start + length, axis=axis)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's constants (momentum 0.1 there is 0.9 here, epsilon 1e-5).

    Statistics are float32. Unlike PyTorch, the running variance is the biased one, and the variance of a
    batch is mean(x^2) - mean(x)^2, which needs inputs whose mean is not many times their deviation.

    With `axis_name` the batch statistics are those of all devices along that axis (synchronised).
    `initial_scale` is the first value of all of its scales.
    """

    train: bool
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        # flax calls this axis by name while it initialises too, outside of any mapped axis.
        axis_name = None if self.is_initializing() else self.axis_name
        norm = nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=axis_name,
            scale_init=nn.initializers.constant(self.initial_scale),
            name="norm",
        )
        # flax's own takes float32 statistics from bfloat16 images, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return norm(images)


def rematerialised(block: type[_Block], remat: bool) -> type[_Block]:
    """The block, or one whose inner activations are not kept but computed again for its gradient.

    Parameters have the same names. The memory of what lies between two blocks' inputs is given back, for the
    time of a second forward pass (Chen et al., arXiv 1604.06174).
    """
    again: type[_Block] = nn.remat(block) if remat else block
    return again


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and, if asked for, ReLU."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    relu: bool = True
    train: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = None
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        outputs = Conv(self.features, self.kernel_size, self.stride, dtype=self.dtype, name="conv")(inputs)
        norm = BatchNorm(self.train, self.axis_name, self.dtype, self.initial_scale, name="bn")
        return nn.relu(norm(outputs)) if self.relu else norm(outputs)


def upsample_nearest(features: jax.Array, factor: int) -> jax.Array:
    """`[B, H, W, C] -> [B, factor * H, factor * W, C]`, every pixel repeated."""
    batch, height, width, channels = features.shape
    shape = (batch, height, factor, width, factor, channels)
    repeated = jnp.broadcast_to(features[:, :, None, :, None, :], shape)
    return repeated.reshape(batch, height * factor, width * factor, channels)


def upsample_bilinear(features: jax.Array, factor: int) -> jax.Array:
    """`[B, H, W, C] -> [B, factor * H, factor * W, C]`, the border repeated outwards.

    Places are of pixels' centres, `(place + 0.5) / factor - 0.5`, as everywhere in `hardmine_jax.pose`
    (PyTorch's `align_corners=False`), so that a peak stays where it is. It is done by matrix products: on CPU
    the gradient of sums of shifted maps takes up to nine times as long.
    """
    batch, height, width, channels = features.shape
    return jax.image.resize(features, (batch, factor * height, factor * width, channels), "linear")
