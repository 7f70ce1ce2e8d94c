import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import absl.logging
import chex
import jax
import numpy as np
import pytest

from hardmine_jax.job.ending import restart_may_mend
from hardmine_jax.training import (
    CheckpointError,
    Checkpoints,
    OptimizerConfig,
    checkpoint,
    load_step,
    load_variables,
    set_aside,
)


def arrays(state):
    if jax.dtypes.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        state = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def assert_same_bits(one, two):
    for a, b in zip(arrays(one), arrays(two), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, keep_last=2, best_metric="pck")
    yield made
    made.close()


@pytest.fixture(scope="module")
def state(tiny):
    """A state after some steps: nothing in it is all zeros, and the key is a typed one."""
    state, step = tiny.state(20), jax.jit(tiny.make_step(None))
    for i in range(3):
        state, _ = step(state, tiny.batch(i))
    return state


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_is_bit_identical(checkpoints, tiny, state):
    position = {"index": 7, "nested": [{"bytes": b"\x00\xff"}, None, "x"], "numpy": np.int64(3)}
    checkpoints.save(3, state, position)
    step, restored, iterator_state = checkpoints.restore_latest(tiny.state(20))
    assert step == 3
    assert iterator_state == {"index": 7, "nested": [{"bytes": b"\x00\xff"}, None, "x"], "numpy": 3}
    assert_same_bits(restored, state)
    assert restored.key.dtype == state.key.dtype
    chex.assert_trees_all_equal_structs(restored.opt_state, state.opt_state)


def test_round_trip_without_ema_of_an_old_style_key(checkpoints, tiny, state):
    state = state.replace(ema_params=None, key=jax.random.PRNGKey(5))
    checkpoints.save(1, state)
    template = tiny.state(20).replace(ema_params=None, key=jax.random.PRNGKey(0))
    assert_same_bits(checkpoints.restore_latest(template).state, state)


def test_what_is_saved_does_not_change_with_the_steps_after(checkpoints, tiny):
    step = jax.jit(tiny.make_step(None), donate_argnums=0)
    state = tiny.state(20)
    before = arrays(state)
    checkpoints.save(0, state)
    for i in range(5):
        state, _ = step(state, tiny.batch(i))
    for a, b in zip(arrays(checkpoints.restore_latest(tiny.state(20)).state), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_keeps_the_best_and_the_last(checkpoints, tiny, state, tmp_path):
    for step, pck in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, float("nan")), (6, 0.6)]:
        metrics = None if pck is None else {"pck": pck}
        checkpoints.save(step, state.replace(step=np.int32(step)), metrics=metrics)
    assert checkpoints.steps() == (2, 5, 6)
    assert checkpoints.best_step() == 2
    assert int(checkpoints.restore_latest(tiny.state(20)).state.step) == 6
    assert load_step(tmp_path, which="best")[0] == 2


def test_a_later_process_knows_the_best(tmp_path, tiny, state):
    first = Checkpoints(tmp_path, keep_last=1, best_metric="pck")
    for step, pck in [(1, 0.2), (2, 0.3), (3, 0.1)]:
        first.save(step, state, metrics={"pck": pck})
    first.close()
    second = Checkpoints(tmp_path, keep_last=1, best_metric="pck")
    assert second.best_step() == 2
    second.save(4, state, metrics={"pck": 0.0})
    assert second.steps() == (2, 4)
    second.close()


def test_a_step_saved_again_is_replaced(checkpoints, tiny, state):
    checkpoints.save(1, state, 1)
    checkpoints.save(1, state, 2)
    assert checkpoints.restore_latest(tiny.state(20)).iterator_state == 2


def test_nothing_there(checkpoints, tiny):
    assert checkpoints.restore_latest(tiny.state(20)) is None
    assert checkpoints.best_step() is None


def test_other_model_is_one_line_with_both_shapes(checkpoints, tiny, state):
    checkpoints.save(1, state)
    with pytest.raises(CheckpointError, match="another model") as raised:
        checkpoints.restore_latest(tiny.state(20, width=12))
    message = str(raised.value)
    assert "params/BatchNorm_0/bias: [8] float32 there, [12] float32 here" in message
    assert "another workdir" in message and "by set_aside" in message and "\n" not in message
    assert checkpoints.steps() == (1,)


def test_other_optimizer(checkpoints, tiny, state):
    checkpoints.save(1, state)
    with pytest.raises(CheckpointError, match="another optimizer or EMA setting .*opt_state"):
        checkpoints.restore_latest(tiny.state(20, config=OptimizerConfig(name="sgd")))


def flip_a_bit(checkpoint):
    path = largest_file(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_a_file(checkpoint):
    path = largest_file(checkpoint)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_file(checkpoint):
    (checkpoint / "state" / "manifest.ocdbt").unlink()


def break_the_json(checkpoint):
    (checkpoint / "about" / "metadata").write_text('{"arrays": {')


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_file, lose_a_file, break_the_json])
def test_damaged_latest_falls_back_to_the_one_before(tmp_path, checkpoints, tiny, state, damage, capsys):
    checkpoints.save(1, state.replace(step=np.int32(1)))
    checkpoints.save(2, state.replace(step=np.int32(2)))
    checkpoints.wait()
    damage(tmp_path / "checkpoints" / "2")
    assert checkpoints.restore_latest(tiny.state(20)).step == 1
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "checkpoints/2 is damaged" in warning
    assert (tmp_path / "checkpoints.damaged" / "2").is_dir()
    checkpoints.save(2, state, "again")
    assert checkpoints.restore_latest(tiny.state(20)).iterator_state == "again"


def described(checkpoint):
    """Its files that hold no arrays, with a position in each that is flipped."""
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and "d" not in path.parts[-2:-1] and path.name != "manifest.ocdbt":
            yield path.relative_to(checkpoint)


def test_a_flipped_bit_anywhere_in_the_description_is_no_wrong_state(tmp_path, tiny, state, capsys):
    whole = Checkpoints(tmp_path / "whole", best_metric="pck")
    for step in (1, 2):
        saved = state.replace(step=np.int32(step))
        whole.save(step, saved, {"batches": step, "bytes": b"ab"}, {"pck": 0.25 * step})
    whole.close()
    rng, fell_back = random.Random(0), set()
    for name in described(tmp_path / "whole" / "checkpoints" / "2"):
        for number in range(3):
            workdir = tmp_path / f"{name}{number}".replace("/", " ")
            shutil.copytree(tmp_path / "whole", workdir)
            path = workdir / "checkpoints" / "2" / name
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            checkpoints = Checkpoints(workdir, best_metric="pck")
            step, restored, position = checkpoints.restore_latest(tiny.state(20))
            assert_same_bits(restored, state.replace(step=np.int32(step)))
            assert position == {"batches": step, "bytes": b"ab"} and checkpoints.best_step() == step
            checkpoints.close()
            fell_back |= {str(name)} if step == 1 else set()
    assert fell_back >= {"about/metadata", "seal/metadata", "state/_METADATA"}


def test_a_checkpoint_of_before_the_seal_is_restored_and_what_it_tells_is_checked(tmp_path, tiny, state):
    def save():
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.save(step, state.replace(step=np.int32(step)), {"batches": step})
        checkpoints.close()
        for step in "12":
            shutil.rmtree(tmp_path / "checkpoints" / step / "seal")
        return Checkpoints(tmp_path)

    def check(restored):
        if restored.iterator_state["batches"] != restored.step:
            raise ValueError("another position")

    about = tmp_path / "checkpoints" / "2" / "about" / "metadata"
    assert save().restore_latest(tiny.state(20), check).step == 2
    changes = [('"batches": 2', '"batches": 3'), ("[[4], ", "[[5], "), ('"iterator"', '"iterated"')]
    for before, after in changes:
        checkpoints = save()
        about.write_text(about.read_text().replace(before, after))
        assert checkpoints.restore_latest(tiny.state(20), check).step == 1


def copied(folder):
    shutil.copytree(folder / "2", folder / "5")


def copied_from_before_the_seal(folder):
    copied(folder)
    shutil.rmtree(folder / "5" / "seal")


def renamed(folder):
    (folder / "2").rename(folder / "5")


def linked(folder):
    (folder / "5").symlink_to("2")


def linked_to_nowhere(folder):
    (folder / "5").symlink_to("7")


@pytest.mark.parametrize("how", [copied, copied_from_before_the_seal, renamed, linked, linked_to_nowhere])
def test_a_folder_under_another_number_is_refused_by_name(tmp_path, state, how):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state.replace(step=np.int32(step)))
    checkpoints.close()
    how(tmp_path / "checkpoints")
    for read in (Checkpoints, load_variables):
        with pytest.raises(CheckpointError, match=r"checkpoints/5 (was not saved under|is a link)"):
            read(tmp_path)
    assert not (tmp_path / "checkpoints.damaged").exists()


FOREIGN = ("10.keep", "backup", "5.orbax-checkpoint-tmp.bak", "a.orbax-checkpoint-tmp", "3 (copy)", "x.txt")


def test_only_what_orbax_has_not_finished_is_removed(tmp_path, state):
    folder = tmp_path / "checkpoints"
    for name in (*FOREIGN, "5.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-123"):
        (folder / name / "metrics").mkdir(parents=True)
        (folder / name / "metrics" / "metrics").touch()
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FOREIGN, "2"])
    for run in range(2):
        assert set_aside(tmp_path) == tmp_path / "checkpoints.previous"
        assert {path.name for path in folder.iterdir()} >= set(FOREIGN)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(run, state)
        checkpoints.close()
    assert all((folder / name / "metrics" / "metrics").exists() for name in FOREIGN)


def test_a_folder_whose_name_is_no_utf8_is_refused_and_not_called_damaged(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    os.makedirs(os.path.join(folder, "checkpoints", "3"))
    for read in (Checkpoints, load_variables):
        with pytest.raises(CheckpointError, match="need a folder with a name in UTF-8") as raised:
            read(folder)
        assert "damaged" not in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize("content", [b"", b'{"score": 0.7}'])
def test_a_damaged_score_is_written_again_as_sealed(tmp_path, tiny, state, content, capsys):
    checkpoints = Checkpoints(tmp_path, best_metric="pck")
    for step, pck in [(1, 0.9), (2, 0.5)]:
        checkpoints.save(step, state.replace(step=np.int32(step)), metrics={"pck": pck})
    checkpoints.close()
    for step in "12":
        (tmp_path / "checkpoints" / step / "metrics" / "metrics").write_bytes(content)
    assert load_step(tmp_path)[0] == 1 and not capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path, best_metric="pck")
    assert checkpoints.best_step() == 1 and checkpoints.steps() == (1, 2)
    assert capsys.readouterr().err.count("is damaged: written again as sealed\n") == 2
    checkpoints.close()


@pytest.mark.parametrize("content", [b"", b'{"sco', b"\x80", b"[]", b'{"score": "high"}', b"[" * 100_000])
def test_a_damaged_score_of_before_the_seal_costs_the_score_alone(tmp_path, tiny, state, content, capsys):
    first = Checkpoints(tmp_path, best_metric="pck")
    first.save(1, state.replace(step=np.int32(1)), metrics={"pck": 0.9})
    first.save(2, state.replace(step=np.int32(2)), metrics={"pck": 0.5})
    first.close()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "seal")
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_bytes(content)
    checkpoints = Checkpoints(tmp_path, best_metric="pck")
    assert checkpoints.restore_latest(tiny.state(20)).step == 2
    assert checkpoints.best_step() == 2 and checkpoints.steps() == (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the score of checkpoint" in said and "checkpoints/1 is damaged" in said
    assert (tmp_path / "checkpoints.damaged" / "score of 1").is_dir()
    checkpoints.close()


def test_all_damaged(tmp_path, checkpoints, tiny, state):
    checkpoints.save(1, state)
    checkpoints.wait()
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="checkpoints/1 is damaged"):
        load_variables(tmp_path)
    # The second start must not take the folder for that of a new run.
    for _ in range(2):
        with pytest.raises(CheckpointError, match="every checkpoint is damaged; set_aside starts anew"):
            checkpoints.restore_latest(tiny.state(20))


def test_storage_that_went_away_is_no_damage(tmp_path, checkpoints, tiny, state, monkeypatch):
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    checkpoints.wait()
    stale = OSError(errno.ESTALE, "Stale file handle")
    # As tensorstore says it.
    busy = ValueError("NOT_FOUND: Error reading ... [os_error_code='5'] [source locations='...']")
    reads = (lambda: checkpoints.restore_latest(tiny.state(20)), lambda: load_variables(tmp_path))
    for error in (stale, busy):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_read_about", lambda *_, error=error: raise_(error))
            for read in reads:
                with pytest.raises(type(error)) as raised:
                    read()
                assert raised.value is error and restart_may_mend(error)
    assert checkpoints.restore_latest(tiny.state(20)).step == 2
    assert not (tmp_path / "checkpoints.damaged").exists()


def raise_(error):
    raise error


def test_storage_that_is_away_while_saving(tmp_path, checkpoints, tiny, state, monkeypatch, capsys):
    checkpoints.save(1, state)
    checkpoints.wait()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    # A file in its place: not even a folder can be made there.
    (tmp_path / "checkpoints").touch()
    for step in (2, 3):
        checkpoints.save(step, state)
    checkpoints.wait()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 2 and all("the last one saved is of step 1" in line for line in warnings)
    with pytest.raises(CheckpointError, match="checkpoints/3 could not be written") as raised:
        checkpoints.check_saved()
    assert not restart_may_mend(raised.value)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    checkpoints.save(4, state)
    checkpoints.check_saved()
    assert checkpoints.steps() == (1, 4)
    # Had the network been the cause, launchers would start again.
    with monkeypatch.context() as patch:
        error = OSError(errno.EIO, "I/O error")
        patch.setattr(type(checkpoints._manager), "save", lambda *_, **__: raise_(error))
        checkpoints.save(5, state)
    with pytest.raises(CheckpointError, match="I/O error") as raised:
        checkpoints.check_saved()
    assert restart_may_mend(raised.value)


def test_a_process_that_could_not_save_says_so_once_and_ends_at_once(small_disk):
    disk = small_disk(8)
    code = """
        import gc, pathlib, shutil, sys, time
        import numpy as np
        import run_tiny
        from hardmine_jax.training import Checkpoints

        noise = np.random.default_rng(0).normal(size=200_000)
        state = run_tiny.state(20).replace(batch_stats={"noise": noise})
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(0, state)
        checkpoints.wait()
        folder = pathlib.Path(sys.argv[1]) / "checkpoints"
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()
        checkpoints.save(1, state)
        checkpoints.wait()
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)
        pathlib.Path(sys.argv[1], "filler").write_bytes(bytes(shutil.disk_usage(sys.argv[1]).free))
        for step in range(2, 6):
            checkpoints.save(step, state)
        checkpoints.wait()
        # Threads that go on may leave something, too.
        time.sleep(1)
        gc.collect()
        print(time.time())
    """
    run = run_apart(code, disk.path, capture_output=True, text=True)
    assert run.returncode == 0
    said = [line.split(" could not")[0] for line in run.stderr.splitlines()]
    assert said == [f"warning: {disk.path}/checkpoints/{step}" for step in range(1, 6)]
    assert time.time() - float(run.stdout) < 10


def run_apart(code, folder, **more):
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, **more)


def test_killed_while_writing(tmp_path, tiny, state):
    """A save that is killed before it is committed is never chosen, and its step can be saved again."""
    code = """
        import os, pathlib, signal, sys, threading, time
        import jax, numpy as np
        import run_tiny
        from hardmine_jax.training import Checkpoints

        state = run_tiny.state(20)
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, state)
        checkpoints.wait()
        big = state.replace(batch_stats={"big": np.random.default_rng(0).normal(size=(20, 1000, 1000))})
        checkpoints.save(2, big)
        while not any("tmp" in p.name for p in pathlib.Path(sys.argv[1], "checkpoints").iterdir()):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run = run_apart(code, tmp_path)
    assert run.returncode == -signal.SIGKILL
    assert any("tmp" in p.name for p in (tmp_path / "checkpoints").iterdir())
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_latest(tiny.state(20)).step == 1
    checkpoints.save(2, state)
    assert checkpoints.steps() == (1, 2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    checkpoints.close()


def large(state, seed):
    """With 1.6 MB that do not compress."""
    noise = np.random.default_rng(seed).normal(size=400_000).astype(np.float32)
    return state.replace(batch_stats={**state.batch_stats, "noise": noise})


def test_full_disk_keeps_the_last_good_one_says_so_and_goes_on(small_disk, tiny, state, capsys):
    disk = small_disk(8)
    checkpoints = Checkpoints(disk.path, keep_last=2)
    checkpoints.save(1, large(state, 1))
    checkpoints.save(2, large(state, 2))
    checkpoints.wait()
    disk.fill()
    checkpoints.save(3, large(state, 3))
    checkpoints.save(4, large(state, 4))
    with pytest.raises(CheckpointError, match=r"checkpoints/4 could not be written \(no space left on"):
        checkpoints.check_saved()
    lines = capsys.readouterr().err.splitlines()
    kept = "the last one saved is of step 2; training goes on"
    assert [line for line in lines if line.startswith("warning")] == [
        f"warning: {disk.path}/checkpoints/{step} could not be written (no space left on device): {kept}"
        for step in (3, 4)
    ]
    # Another process finds the last good one, whatever lies around.
    assert_same_bits(Checkpoints(disk.path).restore_latest(large(state, 0)).state, large(state, 2))
    disk.free()
    checkpoints.save(5, large(state, 5))
    checkpoints.check_saved()
    assert checkpoints.steps() == (2, 5)
    assert_same_bits(checkpoints.restore_latest(large(state, 0)).state, large(state, 5))
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["2", "5"]
    checkpoints.close()


def test_the_first_checkpoint_must_be_written(small_disk, state):
    disk = small_disk(1)
    checkpoints = Checkpoints(disk.path)
    with pytest.raises(CheckpointError, match=r"no space left on device\): none was saved before"):
        checkpoints.save(1, large(state, 1))
        checkpoints.wait()
    checkpoints.close()


def test_set_aside_starts_anew(tmp_path, tiny, state):
    assert set_aside(tmp_path) is None
    for run in range(2):
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.steps() == ()
        checkpoints.save(run, state)
        checkpoints.close()
        assert set_aside(tmp_path) == tmp_path / "checkpoints.previous"
    assert (tmp_path / "checkpoints.previous" / "1").is_dir()
    assert not (tmp_path / "checkpoints.previous" / "0").exists()


def test_load_variables(tmp_path, checkpoints, state):
    other = state.replace(ema_params=jax.tree.map(lambda x: x + 1, state.ema_params))
    checkpoints.save(1, state, metrics={"pck": 0.9})
    checkpoints.save(2, other, metrics={"pck": 0.1})
    checkpoints.wait()
    cases = [
        (tmp_path, "best", state), (tmp_path, "latest", other), (tmp_path / "checkpoints", "best", state),
        (tmp_path / "checkpoints" / "2", "best", other),
    ]  # fmt: skip
    for path, which, expected in cases:
        variables = load_variables(path, which=which)
        assert set(variables) == {"params", "batch_stats"}
        assert all(type(x) is np.ndarray for x in jax.tree.leaves(variables))
        chex.assert_trees_all_equal(variables["params"], expected.ema_params)
        chex.assert_trees_all_equal(variables["batch_stats"], expected.batch_stats)


def test_load_variables_without_ema_or_batch_statistics(tmp_path, checkpoints, state):
    checkpoints.save(1, state.replace(ema_params=None, batch_stats={}))
    checkpoints.wait()
    variables = load_variables(tmp_path)
    chex.assert_trees_all_equal(variables["params"], state.params)
    assert variables["batch_stats"] == {}


def test_load_variables_of_nothing_or_damaged(tmp_path, checkpoints, state):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_variables(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_variables(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_variables(tmp_path / "checkpoints" / "7")
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="1 is damaged"):
        load_variables(tmp_path)


def test_best_metric_that_is_not_there(checkpoints, state):
    with pytest.raises(ValueError, match="best_metric='pck' is not among the metrics"):
        checkpoints.save(1, state, metrics={"ap": 1.0})


def test_about_is_plain_json(tmp_path, checkpoints, state):
    checkpoints.save(1, state, b"position")
    checkpoints.wait()
    about = json.loads((tmp_path / "checkpoints" / "1" / "about" / "metadata").read_text())
    assert about["arrays"]["params/Dense_0/bias"][:2] == [[4], "float32"]


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError, match="keep_last"):
        Checkpoints(tmp_path, keep_last=0)


def test_only_orbax_is_kept_from_logging(checkpoints, state, caplog):
    checkpoints.save(1, state)
    checkpoints.wait()
    assert not [record for record in caplog.records if "orbax" in record.pathname]
    absl.logging.warning("of somebody else")
    assert "of somebody else" in caplog.text
