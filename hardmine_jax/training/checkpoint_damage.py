"""What a checkpoint that cannot be used is said to be: damaged, or another run's."""

import pathlib

from hardmine_jax.job.ending import is_passing
from hardmine_jax.training.checkpoint_folder import CheckpointError

# Whatever else reading raises is taken for damage: it comes from JSON, the file system or tensorstore.
_NOT_DAMAGE = (CheckpointError, MemoryError, PermissionError, UnicodeEncodeError)


def is_damage(error: Exception) -> bool:
    return not isinstance(error, _NOT_DAMAGE) and not is_passing(error)


def say_damaged(path: pathlib.Path, error: Exception) -> str:
    return f"checkpoint {path} is damaged ({reason(error)})"


def reason(error: Exception) -> str:
    """The error in a few words."""
    if "No space left on device" in str(error):
        # Somewhere in tensorstore's thousand characters.
        return "no space left on device"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def other_model(path: pathlib.Path, differing: dict[str, str], anew: str) -> CheckpointError:
    """The error for what `named_arrays.differences` found; `anew` is what starts a run anew."""
    shown = "; ".join(f"{name}: {what}" for name, what in list(differing.items())[:3])
    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
    weights = any(name.startswith(("params/", "batch_stats/")) for name in differing)
    return CheckpointError(
        f"{path} is a checkpoint of {'another model' if weights else 'another optimizer or EMA setting'}"
        f" ({shown}{more}): take another workdir, or start anew by {anew}"
    )
