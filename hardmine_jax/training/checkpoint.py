"""Checkpoints in `<workdir>/checkpoints/<step>`: whole training states that restore to the same bits.

The only file that calls orbax. A checkpoint has three parts: `state`, the arrays under their names; `about`,
a JSON with shape, type and CRC-32 of every array (orbax alone hands out flipped bits without a word) and the
input iterator's position; `seal`, which vouches for `about` (`checkpoint_seal.py`). In a job of several
processes, whose states are the same, process 0 alone writes and reads, and what it restores goes to the
others through the devices: the folder need not be theirs, and nothing in it depends on how many processes or
devices there were.
"""

import contextlib
import functools
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from hardmine_jax.job.exchange import from_main, is_main
from hardmine_jax.job.json_state import decode_json, encode_json
from hardmine_jax.training.checkpoint_complete import complete_steps, remove_incomplete, renames_at_once
from hardmine_jax.training.checkpoint_damage import is_damage, other_model, reason, say_damaged
from hardmine_jax.training.checkpoint_folder import (
    FOLDER,
    AnyPath,
    CheckpointError,
    check_name,
    find_checkpoints,
    remove_unfinished,
    set_damaged_aside,
)
from hardmine_jax.training.checkpoint_of_all import Restored, shared
from hardmine_jax.training.checkpoint_seal import (
    check_about,
    check_folder,
    make_seal,
    mend_scores,
    read_scores,
    read_seal,
)
from hardmine_jax.training.named_arrays import (
    check_described,
    check_whole,
    describe,
    differences,
    from_tree,
    named,
    to_tree,
)
from hardmine_jax.training.orbax_remains import keep_quiet
from hardmine_jax.training.state import TrainState

# Bytes of a disk that is full.
_LITTLE = 2**16


class Checkpoints:
    """Saves while training goes on; keeps the last few and the best.

    Every process of a job calls every method, in the same order, and gets the same answer.

    Args:
      workdir: the run's folder.
      keep_last: how many of the latest stay; two, so that one is left if the last is damaged.
      best_metric: the entry of `save(metrics=...)` whose largest value makes the best one, which stays too;
        None keeps no best.
      anew: what starts a run anew, for the error of checkpoints that cannot be gone on from.
    """

    def __init__(
        self, workdir: AnyPath, *, keep_last: int = 2, best_metric: str | None = None, anew: str = "set_aside"
    ):
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} < 1: a run without its last checkpoint cannot resume")
        self.directory = pathlib.Path(workdir).resolve() / FOLDER
        check_name(self.directory)
        self._best_metric, self._keep_last, self._anew = best_metric, keep_last, anew
        self._opened: ocp.CheckpointManager | None = None
        # Steps: being written, known to be whole. And what became of the last one to be written.
        self._writing: int | None = None
        self._whole: int | None = None
        self._failed: CheckpointError | None = None
        if is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._whole = max(self._manager.all_steps(), default=None)

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Process 0's. Opened anew after a writing that failed: it keeps its errors, and forgets steps."""
        if self._opened is None:
            check_folder(self.directory)
            remove_unfinished(self.directory)
            remove_incomplete(self.directory)
            mend_scores(self.directory)
            self._opened = _open(self.directory, keep_last=self._keep_last)
        return self._opened

    def save(
        self, step: int, state: TrainState, iterator_state: Any = None, metrics: dict | None = None
    ) -> None:
        """Copies the state to the host and returns; the writing goes on in the background.

        Where that fails, for a full disk or a storage that is away, a line on stderr says so, at the next
        `save` or `wait`; what was saved before stays. Only where nothing is saved yet, they raise.

        Args:
          step: name of the checkpoint; one that is there already is replaced.
          state: one-device state (`Parallel.get`).
          iterator_state: anything of JSON, and bytes.
          metrics: of an evaluation of this very state; has to hold `best_metric`.

        Raises:
          CheckpointError: the first checkpoint could not be written.
        """
        score = self._score(metrics)
        if not is_main():
            return
        # Copies: on a CPU device_get gives views of buffers that the next step is about to reuse.
        tree = jax.tree.map(lambda x: np.array(x), jax.device_get(to_tree(state)))
        about = {"arrays": describe(named(tree)), "iterator": encode_json(iterator_state)}
        seal = make_seal(step, None if score is None else score["score"], about)
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeSave(tree), about=ocp.args.JsonSave(about), seal=ocp.args.JsonSave(seal)
        )
        self.wait()
        self._writing = step
        with self._writes():
            # Threads of a writing that failed may have gone on for a while.
            remove_unfinished(self.directory)
            remove_incomplete(self.directory)
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=parts, metrics=score, force=True)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk, or has failed; then see `check_saved`.

        Raises:
          CheckpointError: the first checkpoint could not be written.
        """
        if self._writing is None:
            return
        with self._writes():
            self._manager.wait_until_finished()
            # What failed before matters no more.
            self._whole, self._writing, self._failed = self._writing, None, None

    def check_saved(self) -> None:
        """Raises CheckpointError where the last `save` failed, `wait` having told of it."""
        self.wait()
        if self._failed is not None:
            raise self._failed

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Tells of a checkpoint that cannot be written, and clears away what there is of it."""
        try:
            yield
        # Tensorstore's errors are ValueErrors.
        except (OSError, ValueError) as error:
            # All of this may need the storage that has just failed.
            with contextlib.suppress(OSError, ValueError):
                if self._opened is not None:
                    self._opened.close()
            remove_unfinished(self.directory)
            with contextlib.suppress(OSError):
                remove_incomplete(self.directory)
            path, self._opened, self._writing = self.directory / str(self._writing), None, None
            kept = f"the last one saved is of step {self._whole}"
            if self._whole is None:
                kept = "none was saved before"
            failed = CheckpointError(f"{path} could not be written ({self._why(error)}): {kept}")
            failed.__cause__ = error
            self._failed = failed
            if self._whole is None:
                raise failed from error
            print(f"warning: {failed}; training goes on", file=sys.stderr, flush=True)

    def _why(self, error: Exception) -> str:
        # What failed first is not always what is raised.
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.directory).free < _LITTLE:
                return "no space left on device"
        return reason(error)

    def restore_latest(
        self, template: TrainState, check: Callable[[Restored], object] = lambda restored: None
    ) -> Restored | None:
        """The latest checkpoint that is whole, or None when there is none at all.

        A damaged one before which a whole one is found is moved to `<workdir>/checkpoints.damaged`, with a
        line on stderr.

        Args:
          template: a fresh state of the same model and optimizer (`create_state`); gives the structure.
          check: raises ValueError where what was restored cannot have been saved so: it is damaged, too.

        Raises:
          CheckpointError: made by another model or optimizer, or every one is damaged.
        """
        return shared(functools.partial(self._find_latest, check=check), template)

    def _find_latest(self, template: TrainState, check: Callable[[Restored], object]) -> Restored | None:
        damaged = {}
        for step in sorted(self._steps(), reverse=True):
            try:
                restored = self._restore(step, template)
                check(restored)
            except Exception as error:
                if not is_damage(error):
                    raise
                damaged[step] = error
            else:
                for bad, why in damaged.items():
                    self._move_damaged(bad, why)
                return restored
        if damaged:
            # Left where they are: the next start must not take an empty folder for a new run.
            raise CheckpointError(f"{self.directory}: every checkpoint is damaged; {self._anew} starts anew")
        return None

    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints on disk, ascending."""
        return tuple(from_main(self._steps, "steps of the checkpoints"))

    def _steps(self) -> tuple[int, ...]:
        self.wait()
        return tuple(sorted(self._manager.all_steps()))

    def best_step(self) -> int | None:
        """Step of the one with the largest score; of the latest where none was scored."""
        return from_main(self._best_step, "step of the best checkpoint")

    def _best_step(self) -> int | None:
        self.wait()
        best: int | None = self._manager.best_step()
        return max(self._manager.all_steps(), default=None) if best is None else best

    def close(self) -> None:
        self.wait()
        if self._opened is not None:
            self._opened.close()

    def _restore(self, step: int, template: TrainState) -> Restored:
        path, seal = self.directory / str(step), read_seal(self.directory / str(step))
        about = _read_about(self._manager, step)
        check_about(about, seal)
        differing = differences(about["arrays"], named(to_tree(template)))
        if differing and seal is not None:
            raise other_model(path, differing, self._anew)
        tree = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore()))["state"]
        if differing:
            check_described(about["arrays"], named(tree))
            raise other_model(path, differing, self._anew)
        check_whole(about["arrays"], named(tree))
        return Restored(step, from_tree(template, tree), decode_json(about["iterator"]))

    def _score(self, metrics: dict | None) -> dict | None:
        if metrics is None or self._best_metric is None:
            return None
        if self._best_metric not in metrics:
            raise ValueError(f"best_metric={self._best_metric!r} is not among the metrics {sorted(metrics)}")
        score = float(metrics[self._best_metric])
        # A NaN would sort anywhere; such a state is no candidate.
        return {"score": score} if np.isfinite(score) else None

    def _move_damaged(self, step: int, error: Exception) -> None:
        target = set_damaged_aside(self.directory / str(step), self.directory, str(step))
        self._manager.reload()
        print(f"{say_damaged(self.directory / str(step), error)}: moved to {target}", file=sys.stderr)


def load_variables(path: AnyPath, *, which: Literal["best", "latest"] = "best") -> dict[str, Any]:
    """Reads what prediction needs, without the model's code or optimizer.

    Args:
      path: a workdir, its `checkpoints` folder, or one checkpoint in there (then `which` is not used).
      which: "best" is the latest where nothing was scored.

    Returns:
      `{"params", "batch_stats"}` as nested dicts of numpy arrays; averaged weights where the run kept any.

    Raises:
      CheckpointError: nothing there, or damaged.
    """
    return load_step(path, which=which)[1]


def load_step(path: AnyPath, *, which: Literal["best", "latest"] = "best") -> tuple[int, dict[str, Any]]:
    """The step of the checkpoint that `load_variables` reads, and what it gives."""
    if which not in ("best", "latest"):
        raise ValueError(f"which={which!r}: use best or latest")
    folder = pathlib.Path(path).resolve()
    directory, step = find_checkpoints(folder)
    if not directory.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a workdir or a checkpoint in it")
    check_name(directory)
    check_folder(directory)
    reader = _open_to_read(directory)
    try:
        steps = complete_steps(directory)
        if step is None and steps:
            scores = {n: x for n, x in read_scores(directory).items() if n in steps and which == "best"}
            step = max(scores, key=lambda n: (scores[n], n)) if scores else max(steps)
        if step is None or step not in steps:
            raise CheckpointError(f"{folder}: no checkpoint there; give a workdir that was trained in")
        return step, _read_variables(reader, step)
    except Exception as error:
        if not is_damage(error):
            raise
        raise CheckpointError(
            say_damaged(folder if step is None else directory / str(step), error)
        ) from error
    finally:
        reader.checkpointer.close()


class _Reader(NamedTuple):
    """Reads as a CheckpointManager does, but no other step, whose score may be damaged."""

    directory: pathlib.Path
    checkpointer: ocp.Checkpointer

    def restore(self, step: int, args: ocp.args.Composite) -> Any:
        return self.checkpointer.restore(self.directory / str(step), args=args)


def _open_to_read(directory: pathlib.Path) -> _Reader:
    keep_quiet()
    alone = _alone()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return _Reader(directory, ocp.Checkpointer(handler, multiprocessing_options=alone))


def _open(directory: pathlib.Path, keep_last: int) -> ocp.CheckpointManager:
    keep_quiet()
    policies = ocp.checkpoint_managers
    best = policies.BestN(get_metric_fn=_get_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        multiprocessing_options=_alone(),
        # orbax refuses to make the folder for some processes only.
        create=jax.process_count() == 1,
        best_fn=_get_score,
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=keep_last), best]),
        # Where a folder cannot be made, threads would wait for it for minutes, and the process with them.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        # By itself orbax takes a mounted bucket for a disk.
        temporary_path_class=None
        if renames_at_once(directory)
        else ocp.path.atomicity.CommitFileTemporaryPath,
    )
    return ocp.CheckpointManager(directory, options=options)


def _alone() -> ocp.options.MultiprocessingOptions:
    """orbax without waiting for the other processes, which do not call it."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process {number}"
    )


def _get_score(metrics: dict) -> float:
    return metrics["score"]


def _read_about(manager: ocp.CheckpointManager | _Reader, step: int) -> dict:
    about: dict = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
    return about


def _read_variables(manager: _Reader, step: int) -> dict:
    about = _read_about(manager, step)
    check_about(about, read_seal(manager.directory / str(step)))
    entries = about["arrays"]
    params = "ema_params" if any(name.startswith("ema_params/") for name in entries) else "params"
    entries = {name: e for name, e in entries.items() if name.split("/")[0] in (params, "batch_stats")}
    item = flax.traverse_util.unflatten_dict({name: 0 for name in entries}, sep="/")
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    part = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    tree = manager.restore(step, args=ocp.args.Composite(state=part))["state"]
    check_whole(entries, named(tree))
    return {"params": tree[params], "batch_stats": tree.get("batch_stats", {})}
