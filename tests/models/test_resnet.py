"""Sizes and parameter counts of the trunk, those of torchvision's ResNets without their last layer."""

import chex
import jax
import jax.numpy as jnp
import pytest

from hardmine_jax.models import ResNet
from hardmine_jax.models.resnet import ResNetClassifier

# torchvision's counts less the classifier (1000 classes): 512 or 2048 times 1000, and 1000 biases.
PUBLISHED = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameter_counts_and_levels(depth):
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    levels, variables = jax.eval_shape(ResNet(depth).init_with_output, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PUBLISHED[depth]
    expansion = 1 if depth < 50 else 4
    for level, features in enumerate(levels):
        stride = 4 * 2**level
        chex.assert_shape(features, (2, 64 // stride, 96 // stride, 64 * 2**level * expansion))


@pytest.mark.parametrize("depth, published", [(18, 11_689_512), (50, 25_557_032), (152, 60_192_808)])
def test_the_classifier_has_torchvisions_parameters(depth, published):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.bfloat16)
    model = ResNetClassifier(depth, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == published
    chex.assert_shape(logits, (2, 1000))
    chex.assert_type([logits, *jax.tree.leaves(variables)], jnp.float32)


def test_an_unpublished_depth_is_named():
    with pytest.raises(ValueError, match=r"depth=20 .*\[18, 34, 50, 101, 152\]"):
        ResNet(20).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
