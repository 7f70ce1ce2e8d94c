"""Checkpoints in a mounted bucket, which renames no folder: complete is what has orbax's marker."""

import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest

from hardmine_jax.training import Checkpoints, checkpoint_complete, create_state, load_step, set_aside
from hardmine_jax.training.checkpoint_complete import is_complete, renames_at_once

MARKER = "commit_success.txt"


def _mount(patch, folder, where, kind="fuse.gcsfuse"):
    lines = ["/dev/sda1 / ext4 rw 0 0", f"my-bucket {str(where).replace(' ', chr(92) + '040')} {kind} rw 0 0"]
    (folder / "mounts").write_text("\n".join(lines))
    patch.setattr(checkpoint_complete, "_MOUNTS", folder / "mounts")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that counts as mounted by gcsfuse, and refuses to rename folders as it does."""
    where = tmp_path / "bucket of mine"
    where.mkdir()
    _mount(monkeypatch, tmp_path, where)

    def without_folders(rename):
        def renaming(source, target, **more):
            if os.path.isdir(source) and where in pathlib.Path(source).parents:
                raise OSError(errno.EMFILE, "Too many open files", str(source))
            return rename(source, target, **more)

        return renaming

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, without_folders(getattr(os, name)))
    return where


@pytest.fixture
def state():
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return create_state(
        {"params": params}, apply_fn=None, optimizer=optax.identity(), key=jax.random.PRNGKey(0)
    )


def _save(folder, state, *steps, **more):
    checkpoints = Checkpoints(folder, keep_last=9, best_metric="pck", **more)
    for step in steps:
        checkpoints.save(step, state, {"batches": step}, {"pck": 1 / step})
    checkpoints.close()
    return folder / "checkpoints"


def _cut_short(path):
    """As a process that was killed leaves it: orbax has begun, and set neither its time nor its marker."""
    metadata = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    (path / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata | {"commit_timestamp_nsecs": None}))
    (path / MARKER).unlink()


def test_what_is_mounted_by_fuse_renames_nothing_at_once(tmp_path, monkeypatch):
    (tmp_path / "data" / "run").mkdir(parents=True)
    for kind, fine in [("fuse.gcsfuse", False), ("fuse", False), ("fuse.s3fs", False), ("nfs4", True),
                       ("fuseblk", True)]:  # fmt: skip
        _mount(monkeypatch, tmp_path, tmp_path / "data", kind)
        assert renames_at_once(tmp_path / "data" / "run") is fine
        assert renames_at_once(tmp_path / "database") and renames_at_once(tmp_path)
    monkeypatch.setattr(checkpoint_complete, "_MOUNTS", tmp_path / "nowhere")
    assert renames_at_once(tmp_path / "data" / "run")


def test_saves_and_restores_where_no_folder_is_renamed(bucket, state):
    directory = _save(bucket, state, 1, 2)
    assert all((directory / name / MARKER).exists() for name in ("1", "2"))
    restored = Checkpoints(bucket).restore_latest(state)
    assert restored.step == 2 and restored.iterator_state == {"batches": 2}
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    assert load_step(bucket, which="best")[0] == 1


def test_one_that_was_cut_short_is_none_and_goes(bucket, state):
    directory = _save(bucket, state, 1, 2, 3)
    _cut_short(directory / "3")
    # Reading removes nothing: somebody else may be writing.
    assert load_step(bucket, which="latest")[0] == 2 and (directory / "3").exists()
    checkpoints = Checkpoints(bucket)
    assert checkpoints.steps() == (1, 2) and not (directory / "3").exists()
    assert checkpoints.restore_latest(state).step == 2
    checkpoints.save(3, state)
    checkpoints.close()
    assert is_complete(directory / "3")


def test_runs_that_were_copied_there_are_kept(bucket, tmp_path, state):
    """A run on a disk, of a version that left the time alone; and what nobody can tell is set aside."""
    local = _save(tmp_path / "local", state, 1, 2)
    (local / "2" / MARKER).unlink()
    shutil.copytree(local, bucket / "checkpoints")
    (bucket / "checkpoints" / "7").mkdir()
    (bucket / "checkpoints" / "7" / "weights").write_text("precious")
    checkpoints = Checkpoints(bucket)
    assert checkpoints.restore_latest(state).step == 2
    checkpoints.close()
    assert (bucket / "checkpoints.damaged" / "7" / "weights").read_text() == "precious"


def test_starting_anew_moves_them_without_renaming(bucket, state):
    _save(bucket, state, 1)
    for _ in range(2):
        assert set_aside(bucket) == bucket / "checkpoints.previous"
        assert not (bucket / "checkpoints" / "1").exists()
        assert is_complete(bucket / "checkpoints.previous" / "1")
        _save(bucket, state, 1)


def test_on_a_disk_it_is_as_before(tmp_path, state, monkeypatch):
    renamed = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *args, **more: (renamed.append(args), rename(*args, **more))[1])
    _save(tmp_path, state, 1)
    names = [pathlib.Path(source).name for source, _ in renamed]
    assert any(name.startswith("1.orbax-checkpoint-tmp") for name in names)
