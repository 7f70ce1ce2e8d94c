"""Flags of the command line: what others follow from, what they may be, and what is told of them."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

from hardmine_jax.data.problems import Skipped
from hardmine_jax.tasks.config_json import plain


def first_flags(arguments: Sequence[str] | None, choices: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The flags that the defaults of the others follow from; of each the first choice where it is not given.

    >>> first_flags(["--steps", "3", "--preset", "big"], {"preset": ("small", "big"), "dataset": ("lspet",)})
    {'preset': 'big', 'dataset': 'lspet'}
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, allowed in choices.items():
        parser.add_argument(flag(name), choices=allowed, default=allowed[0])
    return vars(parser.parse_known_args(arguments)[0])


def shorten_warmup(config, default):
    """The config, its warm-up at most a tenth of the run where it is the default's: nobody asked for it."""
    optimizer = config.optimizer
    if optimizer.warmup_steps != default.optimizer.warmup_steps:
        return config
    warmup = min(optimizer.warmup_steps, max(config.steps, 0) // 10)
    return dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, warmup_steps=warmup))


def check_counts(config, least: Mapping[str, int]) -> None:
    """Raises ValueError for a flag below its least value, and for a seed that is none."""
    for name, low in {**least, "seed": 0}.items():
        if getattr(config, name) < low:
            raise ValueError(f"{flag(name)} {getattr(config, name)} must be at least {low}")
    if config.seed >= 2**32:
        raise ValueError(f"--seed {config.seed} must be below 2**32")


def check_data_flags(config, used: Mapping[str, tuple[str, ...]], kind: str, advice: str) -> None:
    """Raises ValueError for a flag that is given and means nothing to the dataset.

    Args:
      used: for each kind of dataset the flags that it reads.
      kind: which one it is; `advice`: what to do instead.
    """
    for name in sorted({name for names in used.values() for name in names} - {*used[kind]}):
        if getattr(config, name) is not None:
            raise ValueError(f"{flag(name)} means nothing to --dataset {kind}: {advice}, or drop it")


def tell_skipped(skipped: Skipped) -> None:
    """One line on stderr, where anything was left out or is odd."""
    if skipped.reasons or skipped.noted:
        print(skipped.report(), file=sys.stderr)


def flag(name: str) -> str:
    """
    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


# Flags that may change between two starts of one run without changing what it is.
FREE = (
    "resume", "eval_only", "parallel", "num_workers", "workdir", "cache_dir", "log_every", "distributed",
    "coordinator", "num_processes", "process_id", "patience",
)  # fmt: skip


def tell_changes(workdir: pathlib.Path, old, new) -> None:
    """One line on stderr where a run goes on with another config than it had."""
    old, new = plain(old), plain(new)
    changed = [f"{name}={old[name]!r}" for name in new if name not in FREE and old[name] != new[name]]
    if changed:
        print(f"note: {workdir} was trained with {', '.join(changed)} until here", file=sys.stderr)
