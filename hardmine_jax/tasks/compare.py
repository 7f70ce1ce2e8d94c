"""Several runs in one table: does mining help, and by how much more than chance?

    hardmine compare runs/*                  # of hardmine pose train or of hardmine detection train
    hardmine compare runs/* --markdown       # to paste into a document

Every argument is a finished run's --workdir. Runs that differ in nothing but their seed are one row: the mean
over them, and after ± their standard deviation (with n - 1), which one run does not have. The columns before
the scores are the settings in which the rows differ. Two rows whose difference is small beside what the seeds
do are not told apart by this table.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import rich
import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from hardmine_jax.data.problems import DataError
from hardmine_jax.tasks.config_json import read_config
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import FREE, flag, parse_flags
from hardmine_jax.tasks.page import number, percent

# Settings that change nothing of what is learned, beside those that may change within a run.
_SILENT = {
    *FREE, "keep_last", "checkpoint_every", "evaluate_every", "data_dir", "annotations", "images",
}  # fmt: skip


class Score(NamedTuple):
    """A column: where `result.json` has the number, its heading, and whether it is a share."""

    path: tuple[str, ...]
    heading: str
    share: bool = True


SCORES = (
    Score(("pck",), "PCK@0.1"), Score(("pck_visible",), "visible"), Score(("pck_occluded",), "occluded"),
    Score(("pck@0.2",), "PCK@0.2"), Score(("ap",), "OKS AP"), Score(("pckh", "pckh@0.5"), "PCKh@0.5"),
    Score(("detections", "ap"), "AP on boxes"),
    Score(("map",), "mAP@0.5"), Score(("map_11_point",), "11-point"), Score(("coco", "AP"), "COCO AP"),
    Score(("seconds",), "seconds", False), Score(("images_per_second",), "images/s", False),
    Score(("peak_memory_mb",), "peak MB", False),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compares finished runs.

    Attributes:
      workdirs: of the runs.
      markdown: print a Markdown table.
    """

    workdirs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    markdown: bool = False


class Run(NamedTuple):
    """A finished run: its settings, flat, without the seed; the seed; and what result.json holds."""

    settings: dict[str, Any]
    seed: int
    result: dict[str, Any]


def read_run(workdir: pathlib.Path) -> Run:
    """What a run was and what came of it.

    Raises:
      DataError: the folder holds no finished run.
    """
    (config,) = read_config(
        workdir, {"config": None}, script="hardmine pose train or hardmine detection train"
    )
    # What is not given is the same whether the run's version knew the flag or not.
    settings = {
        name: given for name, given in flatten(config).items() if name not in _SILENT and given is not None
    }
    path = workdir / "result.json"
    try:
        result = json.loads(path.read_text())
        return Run(settings, settings.pop("seed"), dict(result))
    except FileNotFoundError as error:
        raise DataError(f"no {path}: give --workdirs of finished runs") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is of no finished run: give --workdirs of finished runs") from error


def flatten(content: Mapping, prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"k": 8, "optimizer": {"name": "adam"}})
    {'k': 8, 'optimizer.name': 'adam'}
    """
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def group(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share all settings, in the order of their first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    return list(groups.values())


def different(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names of the settings in which the groups differ."""
    names = dict.fromkeys(name for runs in groups for name in runs[0].settings)
    return [name for name in names if len({json.dumps(runs[0].settings.get(name)) for runs in groups}) > 1]


def value(result: Mapping, path: Sequence[str]) -> float | None:
    """The number at a path of names; None where there is none."""
    found: Any = result
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


def written(values: Sequence[float | None], *, share: bool) -> str:
    """Mean ± standard deviation over the runs that have the number.

    >>> written([0.5, 0.52], share=True), written([12.0], share=False), written([None], share=True)
    ('51.0 ± 1.4 %', '12.0', '–')
    """
    found = [one for one in values if one is not None]
    if not found:
        return percent(None)
    mean = statistics.fmean(found)
    if len(found) == 1:
        return percent(mean) if share else number(mean, "{:,.1f}")
    scale, unit = (100, " %") if share else (1, "")
    return f"{scale * mean:,.1f} ± {scale * statistics.stdev(found):,.1f}{unit}"


def rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table, a row a group of runs."""
    groups = group(runs)
    names = different(groups)
    scores = [score for score in SCORES if any(value(run.result, score.path) is not None for run in runs)]
    headings = [*(flag(name) for name in names), "seeds", *(score.heading for score in scores)]
    lines = []
    for members in groups:
        settings = [_setting(members[0].settings.get(name)) for name in names]
        cells = [
            written([value(run.result, score.path) for run in members], share=score.share) for score in scores
        ]
        lines.append([*settings, str(len({run.seed for run in members})), *cells])
    return headings, lines


def _setting(given: Any) -> str:
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)


def run(config: CompareConfig) -> None:
    """Prints the table."""
    if not config.workdirs:
        raise DataError("no run: name at least one --workdir of hardmine pose train or detection train")
    headings, lines = rows([read_run(workdir) for workdir in config.workdirs])
    if config.markdown:
        for cells in (headings, ["---"] * len(headings), *lines):
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading.startswith("--") else "right")
    for cells in lines:
        table.add_row(*map(escape, cells))
    rich.print(table)


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> CompareConfig:
    """The command line."""
    return parse_flags(CompareConfig, arguments, prog=prog, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))
