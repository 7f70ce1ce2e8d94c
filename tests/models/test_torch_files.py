"""Files of weights: what PyTorch, safetensors and numpy wrote comes back; everything else is one line."""

import collections
import json
import os
import pathlib
import struct
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from hardmine_jax.models import HRNet, hrnet, simple_baseline
from hardmine_jax.models.torch_files import read_torch_file
from hardmine_jax.models.torch_weights import WeightsError

ENTRIES = {
    "conv1.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "bn1.bias": np.ones(2, np.float32),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch writes the files read here, and is not installed")


def _tensors(torch, entries=ENTRIES):
    return collections.OrderedDict((name, torch.from_numpy(x)) for name, x in entries.items())


def _assert_entries(found, expected=ENTRIES):
    assert set(found) == set(expected)
    for name, x in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x)


def _one_line(path, match) -> str:
    with pytest.raises(WeightsError, match=match) as raised:
        read_torch_file(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 250
    return message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".PTH"])
def test_a_file_of_pytorch_is_read(suffix, zipped, torch, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=zipped)
    _assert_entries(read_torch_file(path))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_of_a_training_is_read(key, torch, tmp_path):
    inner = _tensors(torch, {f"module.{name}": x for name, x in ENTRIES.items()})
    inner["module.bn1.num_batches_tracked"] = torch.tensor(7)
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "model": "pose_hrnet", "optimizer": optimizer, key: inner}, tmp_path / "a.pth")
    _assert_entries(read_torch_file(tmp_path / "a.pth"))


def test_tensors_of_every_kind(torch, tmp_path):
    values = torch.tensor([1.0, -2.5])
    kinds = {"half": values.half(), "brain": values.bfloat16(), "double": values.double()}
    kinds |= {"trained": values.clone().requires_grad_(), "parameter": torch.nn.Parameter(values)}
    torch.save(kinds | {"turned": torch.ones(3, 2).T, "count": torch.tensor(4)}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.pop("turned").shape == (2, 3)
    assert found.pop("count").dtype == np.int64
    _assert_entries(found, dict.fromkeys(kinds, values.numpy()))
    torch.save({"sparse": torch.ones(2).to_sparse()}, tmp_path / "a.pt")
    _one_line(tmp_path / "a.pt", "sparse is no plain array")


class _Malicious:
    """Loading it plainly would make a file."""

    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_1.6"])
@pytest.mark.parametrize("how", ["touch", "system", "eval"])
def test_a_malicious_file_is_refused_and_does_not_run(how, zipped, torch, tmp_path, monkeypatch):
    made, path = tmp_path / "made", tmp_path / "weights.pth"
    attack = {
        "touch": _Malicious(pathlib.Path.touch, made),
        "system": _Malicious(os.system, f"touch {made}"),
        "eval": _Malicious(eval, f"open({str(made)!r}, 'w').close()"),
    }[how]
    torch.save({**_tensors(torch), "extra": attack}, path, _use_new_zipfile_serialization=zipped)
    # The variable that makes an unsafe load the default has no say here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    message = _one_line(path, "refused, it holds more than weights: ")
    assert "save the state_dict alone" in message
    assert not made.exists()
    # The attack is a real one.
    torch.load(path, weights_only=False)
    assert made.exists()


def test_a_whole_network_is_refused_by_name(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    _one_line(tmp_path / "a.pth", "refused, .* torch.nn.modules.linear.Linear would have to run")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_1.6"])
def test_a_truncated_file_of_pytorch_is_damaged(zipped, torch, tmp_path):
    whole, path = tmp_path / "whole.pth", tmp_path / "part.pth"
    torch.save(_tensors(torch), whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    for length in (0, 1, 10, 100, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:length])
        assert f"{length} bytes" in _one_line(path, "not a file of torch.save, or damaged")


@pytest.mark.parametrize("content", [b"hello" * 100, b"<html>not found</html>", b"PK\x03\x04", bytes(200)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_other_content_is_named(suffix, content, tmp_path):
    if suffix != ".npz":
        pytest.importorskip({".pth": "torch", ".safetensors": "safetensors"}[suffix])
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    _one_line(path, "not an? .*, or damaged")


@pytest.mark.parametrize(
    "held, named", [([1, 2], "holds a list"), ({1: 2}, "holds a dict"), ({}, "no arrays")]
)
def test_a_file_without_arrays_by_name(held, named, torch, tmp_path):
    torch.save(held, tmp_path / "a.pth")
    _one_line(tmp_path / "a.pth", named)
    torch.save({"epoch": 3, **_tensors(torch)}, tmp_path / "a.pth")
    _one_line(tmp_path / "a.pth", "epoch is no plain array: a int")


def test_numpys_file_is_read_without_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", **ENTRIES)
    _assert_entries(read_torch_file(tmp_path / "a.npz"))
    np.savez_compressed(tmp_path / "b.npz", **{name: x.astype(np.float16) for name, x in ENTRIES.items()})
    _assert_entries(read_torch_file(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", attack=np.array([_Malicious(pathlib.Path.touch, tmp_path / "made")], object))
    _one_line(tmp_path / "c.npz", "not an .npz of plain arrays")
    assert not (tmp_path / "made").exists()
    np.save(tmp_path / "d.npy", np.ones(2))
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    _one_line(tmp_path / "d.npz", "not an .npz of plain arrays")


def _write_safetensors(path, arrays):
    """By the published format: length of the header, header, bytes."""
    kinds = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.int64): "I64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in arrays.items():
        offsets = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape), "data_offsets": offsets}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_safetensors_are_read_in_bfloat16_too(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    _write_safetensors(path, ENTRIES)
    _assert_entries(read_torch_file(path))
    _write_safetensors(path, {name: x.astype(ml_dtypes.bfloat16) for name, x in ENTRIES.items()})
    _assert_entries(read_torch_file(path))
    path.write_bytes(path.read_bytes()[:-4])
    _one_line(path, "not a safetensors file, or damaged")


@pytest.mark.parametrize("module, suffix", [("torch", ".pth"), ("safetensors.numpy", ".safetensors")])
def test_a_package_that_is_not_there_is_asked_for(module, suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"a{suffix}").write_bytes(b"anything")
    _one_line(tmp_path / f"a{suffix}", f"pip install {module.split('.')[0]}")


def test_no_such_file_and_no_such_kind(tmp_path):
    _one_line(tmp_path / "gone.pth", "No such file")
    _one_line(tmp_path / "weights.h5", r"weights are read from .pth, .pt, .pth.tar, .safetensors or .npz")
    (tmp_path / "folder.npz").mkdir()
    _one_line(tmp_path / "folder.npz", "Is a directory")


@pytest.mark.parametrize("kind", ["hrnet", "simple_baseline"])
def test_a_published_file_predicts_as_in_pytorch(kind, torch_networks, torch, tmp_path):
    if kind == "hrnet":
        network = torch_networks.HRNet(4, 5, stem=4, stem_blocks=1, modules=(1, 1, 1), blocks=1)
        model = HRNet(4, 5, stem_features=4, stem_blocks=1, modules=(1, 1, 1), blocks=1)
        from_torch = hrnet.from_torch
    else:
        network = torch_networks.SimpleBaseline(18, 5, width=4, features=6)
        model = simple_baseline.SimpleBaseline(18, 5, width=4, deconvolution_features=6)
        from_torch = simple_baseline.from_torch
    network = torch_networks.randomise(network)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    images = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype(np.float32)
    found = jax.jit(model.apply)(from_torch(read_torch_file(tmp_path / "a.pth")), images)
    (expected,) = torch_networks.run(network, images)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
