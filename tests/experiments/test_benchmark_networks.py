"""The benchmark of networks: its counts against papers and against each other, its table, its command."""

import io
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.benchmarks import networks as benchmark
from hardmine_jax.models import CPN, SimpleBaseline
from hardmine_jax.models.layers import Conv, ConvNorm, DoubleConvTranspose, upsample_bilinear

cost = sys.modules["network_cost"]


class Tiny(nn.Module):
    """One layer, called as networks are."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        return ConvNorm(4, stride=2, train=train, dtype=self.dtype, name="layer")(images)


def _shape(*shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (Conv(5, 3), (2, 4, 6, 3), 2 * 4 * 6 * 5 * 3 * 9),
        (Conv(5, 3, stride=2), (1, 5, 6, 3), 3 * 3 * 5 * 3 * 9),
        (Conv(5, 1, stride=2), (1, 5, 6, 3), 3 * 3 * 5 * 3),
        (DoubleConvTranspose(5), (1, 4, 6, 3), 4 * 6 * 16 * 3 * 5),
        (nn.Dense(7), (2, 3), 2 * 3 * 7),
        (nn.Conv(6, (3, 3), feature_group_count=2, padding="SAME"), (1, 4, 4, 4), 4 * 4 * 6 * 2 * 9),
    ],
)
def test_multiply_adds_of_layers_by_hand(layer, shape, expected):
    variables = jax.eval_shape(layer.init, jax.random.key(0), _shape(*shape))
    assert cost.multiply_adds(layer.apply, variables, _shape(*shape)) == expected


def test_multiply_adds_inside_other_functions():
    square = _shape(4, 4)
    product = 4**3

    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert cost.multiply_adds(loop, square) == 5 * product
    assert cost.multiply_adds(branch, square) == 2 * product
    assert cost.multiply_adds(jax.jit(jax.checkpoint(lambda x: jax.nn.relu(x @ x))), square) == product
    assert cost.multiply_adds(jax.vmap(lambda x: x @ x), _shape(3, 4, 4)) == 3 * product
    # The product, the same again backwards, and one for each of its operands.
    remade = jax.grad(jax.checkpoint(lambda x: jnp.sin(x @ x).sum()))
    assert cost.multiply_adds(remade, square) == 4 * product


def test_zeros_that_a_stride_brings_into_its_gradient_are_no_work():
    images, kernel, forward = _shape(1, 8, 8, 3), _shape(3, 3, 3, 5), 4 * 4 * 5 * 27

    def loss(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=numbers).sum()

    assert cost.multiply_adds(jax.value_and_grad(loss), images, kernel) == 2 * forward


def test_multiply_adds_leave_out_what_a_platform_does_for_speed_alone():
    def transposed(images, kernel):
        return jax.lax.conv_transpose(images, kernel, (2, 2), ((2, 2), (2, 2)))

    assert cost.multiply_adds(transposed, _shape(1, 4, 6, 3), _shape(4, 4, 3, 5)) == 4 * 6 * 16 * 3 * 5

    def depends(x):
        return jax.lax.platform_dependent(x, tpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert cost.multiply_adds(depends, _shape(4, 4)) == 4**3


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="write a scan"):
        cost.multiply_adds(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), _shape(4, 4)
        )


@pytest.mark.parametrize(
    "name, published",
    [
        ("HRNet-W32 256x192", 7.10),
        ("HRNet-W48 256x192", 14.6),
        ("SimpleBaseline-50 256x192", 8.90),
        ("Hourglass-8 256x192", 19.48),
    ],
)
def test_counts_of_papers(name, published):
    model, size, quoted = benchmark.NETWORKS[name]
    assert quoted == published
    assert cost.published_multiply_adds(model, size) / 2**30 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    "name, millions", [("HRNet-W32 256", 28.5), ("HRNet-W48 256", 63.6), ("CPN-50 256", 27.0)]
)
def test_parameters_of_papers(name, millions):
    (network,) = benchmark.chosen((name,)).values()
    assert cost.parameters(network.model, network.size) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", ["HRNet-W32 256x192", "Hourglass-2", "VGG16"])
def test_both_ways_to_count_agree(name):
    """By layers and by the jaxpr, where no convolution is transposed."""
    (network,) = benchmark.chosen((name,)).values()
    layers = cost.published_multiply_adds(network.model, network.size)
    assert cost.forward_multiply_adds(network.model, network.size) == layers


def test_what_upsampling_adds_to_the_layers_of_cpn():
    model, size = CPN(50), (256, 192)
    # Three levels to the size of the finest, heatmaps and features; and each level into the next.
    sources = [(64 // factor, 48 // factor, maps, factor) for factor in (2, 4, 8) for maps in (17, 256)]
    sources += [(8, 6, 256, 2), (16, 12, 256, 2), (32, 24, 256, 2)]
    upsampling = sum(
        cost.multiply_adds(lambda x, factor=factor: upsample_bilinear(x, factor), _shape(1, *shape))
        for *shape, factor in sources
    )
    layers = cost.published_multiply_adds(model, size)
    assert cost.forward_multiply_adds(model, size) == layers + upsampling
    assert upsampling < 0.02 * layers


def test_transposed_convolutions_are_published_as_four_times_what_they_do():
    model, size = SimpleBaseline(50), (256, 192)
    done, published = cost.forward_multiply_adds(model, size), cost.published_multiply_adds(model, size)
    transposed = 16 * 256 * (2048 * 8 * 6 + 256 * 16 * 12 + 256 * 32 * 24)
    assert published - done == 3 * transposed
    assert done / 1e9 == pytest.approx(5.43, abs=0.005)


def test_table_of_a_small_network():
    config = benchmark.Config(memory=True, time=True, batch=2, rounds=1)
    cells = benchmark.row(benchmark.Network(Tiny(), (32, 32), 1.0), config)
    assert cells["parameters"] == "116" and cells["quoted"] == "1.00"
    # The images, two maps of 16x16x4 at once, the parameters and their gradients, and not ten times as much.
    needed = 4 * 2 * (32 * 32 * 3 + 2 * 16 * 16 * 4 + 116)
    assert needed <= cost.training_memory(Tiny(), (32, 32), batch=2) < 10 * needed
    assert float(cells["forward, images/s"].replace(",", "")) > 0
    assert float(cells["training, images/s"].replace(",", "")) > 0
    console = Console(width=250, file=io.StringIO())
    console.print(benchmark.table([{"network": "tiny", **cells}], config))
    text = console.file.getvalue()
    assert "batch 2, float32" in text and all(name in text for name in cells)


def test_names_choose_networks():
    assert list(benchmark.chosen(("W48", "VGG"))) == [
        "HRNet-W48 256x192",
        "HRNet-W48 384x288",
        "VGG16 224x224",
    ]
    assert benchmark.chosen(()) == benchmark.NETWORKS
    with pytest.raises(ValueError, match="--networks W64: none of HRNet-W32 256x192, .* contains it"):
        benchmark.chosen(("W64",))


def test_the_command(capsys):
    benchmark.main(benchmark.Config(networks=("SimpleBaseline-50",)))
    assert "33,999,697" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--batch 0"):
        benchmark.main(benchmark.Config(batch=0))
