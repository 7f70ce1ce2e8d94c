"""Files of weights: PyTorch's own, safetensors and .npz -> arrays by name. Nothing in a file is ever run.

PyTorch is needed for its own files only, and asked for only then; likewise the safetensors package. A file
of more than MAX_BYTES, packed, unpacked or as float32, is refused before it fills the memory.
"""

import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hardmine_jax.models.torch_weights import WeightsError, plain_entries

# 4 GiB; the largest network whose weights are read here, VGG16, has 0.6 GB.
MAX_BYTES = 2**32
_MAX_NAME = 300


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a file by their published names; floats of any precision become float32.

    Args:
      path: a .pth, .pt or .pth.tar that `torch.save` wrote, a state_dict or a checkpoint with one under
        "state_dict" or "model"; a .safetensors; or an .npz.

    Raises:
      WeightsError: no such file; damaged; too large; of another kind; with anything in it but arrays by
        name, code that would run included; or the package that reads it is not installed.
    """
    path = pathlib.Path(path)
    read = _reader(path)
    try:
        # A pipe would wait at its opening without end.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise WeightsError(f"{path}: no regular file")
        path.open("rb").close()
        _check_size(path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    entries = read(path)
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise WeightsError(f"{path}: holds a {type(entries).__name__}, not arrays by name")
    entries = plain_entries(entries)
    for name in entries:
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise WeightsError(f"{path}: damaged, or no weights: an array is called {ascii(name[:60])}")
    # A few numbers can be said to be many, each read again and again.
    count = sum(int(np.prod(getattr(entry, "shape", ()), dtype=object)) for entry in entries.values())
    if 4 * count > MAX_BYTES:
        raise WeightsError(f"{path}: holds {count:,} numbers, which is more than {MAX_BYTES:,} bytes")
    arrays = {name: _to_array(path, name, entry) for name, entry in entries.items()}
    if not arrays:
        raise WeightsError(f"{path}: holds no arrays")
    return arrays


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Any]:
    if path.name.lower().endswith((".pth", ".pt", ".pth.tar")):
        return _read_torch
    if path.suffix.lower() not in (".safetensors", ".npz"):
        raise WeightsError(f"{path}: weights are read from .pth, .pt, .pth.tar, .safetensors or .npz files")
    return _read_npz if path.suffix.lower() == ".npz" else _read_safetensors


def _check_size(path: pathlib.Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: no regular file")
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(member.file_size for member in archive.infolist()))
    except Exception:  # No zip, or a damaged one: its own reader will say so.
        pass
    if size > MAX_BYTES:
        raise WeightsError(f"{path}: {size:,} bytes of content, of at most {MAX_BYTES:,} that are read")


def _read_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path}: PyTorch reads such files: pip install torch ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # What a damaged file raises depends on where the damage is.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise WeightsError(f"{path}: not a file of torch.save, or {_damage(path, error)}") from error
        name = ascii(code[1][:_MAX_NAME])[1:-1]
        raise WeightsError(
            f"{path}: refused, it holds more than weights: {name} would have to run. If you trust the file,"
            " load it in PyTorch and save the state_dict alone"
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        wanted = "pip install safetensors"
        raise WeightsError(f"{path}: the safetensors package reads such files: {wanted} ({error})") from error
    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(f"{path}: not a safetensors file, or {_damage(path, error)}") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Given a path, NumPy leaves the file open when it is no zip.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:
        raise WeightsError(f"{path}: not an .npz of plain arrays, or {_damage(path, error)}") from error


def _damage(path: pathlib.Path, error: Exception) -> str:
    # Only the kind of error: PyTorch's text is a page that advises to load the file unsafely.
    return f"damaged ({type(error).__name__}; {path.stat().st_size} bytes)"


def _to_array(path: pathlib.Path, name: str, entry: Any) -> np.ndarray:
    try:
        if hasattr(entry, "detach"):
            entry = entry.detach()
            # NumPy has no bfloat16 of PyTorch's.
            entry = entry.float().numpy() if entry.is_floating_point() else entry.numpy()
        elif not isinstance(entry, np.ndarray):
            raise TypeError(f"a {type(entry).__name__}")
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"{path}: {name} is no plain array: {str(error).splitlines()[0]}") from error
    return entry.astype(np.float32, copy=False) if jnp.issubdtype(entry.dtype, jnp.floating) else entry
