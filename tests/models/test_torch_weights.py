import numpy as np
import pytest

from hardmine_jax.models.torch_weights import (
    WeightsError,
    conv_kernel,
    count_children,
    dense_kernel,
    plain_entries,
    take_entries,
)


class _Tensor:
    """As much of a tensor as is asked of one."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    cpu = float = detach

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def test_arrays_and_tensors_become_float32():
    entries = take_entries({"a": _Tensor([1, 2]), "b": np.ones((1, 2), np.float64)}, {"a": (2,), "b": (1, 2)})
    assert {name: (x.dtype, x.shape) for name, x in entries.items()} == {
        "a": (np.float32, (2,)),
        "b": (np.float32, (1, 2)),
    }


def test_torch_tensors_of_any_kind():
    torch = pytest.importorskip("torch")
    values = {"half": torch.ones(2, dtype=torch.bfloat16), "trained": torch.ones(2, requires_grad=True)}
    for array in take_entries(values, {"half": (2,), "trained": (2,)}).values():
        np.testing.assert_array_equal(array, np.ones(2, np.float32))


def test_unused_entries_may_be_there_or_not():
    wanted = {"a": ()}
    take_entries({"a": 1.0, "old": 2.0}, wanted, unused=("old",))
    take_entries({"a": 1.0}, wanted, unused=("old",))
    with pytest.raises(ValueError, match="nothing here takes new"):
        take_entries({"a": 1.0, "new": 2.0}, wanted, unused=("old",))


def test_a_dot_stands_for_all_below():
    entries = {"a": 1.0, "head.0.weight": 2.0, "head.bias": 3.0}
    assert set(take_entries(entries, {"a": ()}, unused=("head.",))) == {"a"}
    for unused in (("head",), ("hea.",), ("head.0",)):
        with pytest.raises(WeightsError, match="takes head.0.weight, head.bias$"):
            take_entries(entries, {"a": ()}, unused=unused)


def test_only_what_is_in_front_of_all_names_is_a_wrapper():
    entries = {"module.a": 1.0, "module.b.num_batches_tracked": 4}
    assert plain_entries(entries) == {"a": 1.0}
    assert plain_entries(entries | {"b": 2.0}) == {"module.a": 1.0, "b": 2.0}
    assert plain_entries({"module.module.a": 1.0}) == {"module.a": 1.0}


def test_blocks_are_counted_and_not_their_entries():
    names = [f"layer1.{block}.{leaf}" for block in range(12) for leaf in ("weight", "bias")]
    assert count_children(names, "layer1.") == 12
    assert count_children(names, "layer2.") == 0


def test_eight_names_are_all_named_and_more_are_counted():
    shapes = {f"layer{index}": () for index in range(30)}
    with pytest.raises(WeightsError, match=r"missing layer0, .*, layer7 and 22 more$"):
        take_entries({}, shapes)
    with pytest.raises(WeightsError, match=r"missing layer0, .*, layer7$"):
        take_entries({name: 0.0 for name in list(shapes)[8:]}, shapes)


def test_kernels_apply_as_the_weights_do():
    weight = np.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    patch = np.random.default_rng(0).normal(size=(3, 2, 2))
    expected = (weight * patch).sum((1, 2, 3))
    here = patch.transpose(1, 2, 0)
    np.testing.assert_allclose(np.einsum("hwi,hwio->o", here, conv_kernel(weight)), expected)
    flat = weight.reshape(2, -1)
    np.testing.assert_allclose(here.ravel() @ dense_kernel(flat, maps=3), expected)
    np.testing.assert_allclose(patch.ravel() @ dense_kernel(flat), expected)
