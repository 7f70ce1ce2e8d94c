"""Several runs in one table: does mining help, and by how much more than chance?

    hardmine compare runs/*                  # of hardmine pose train and of hardmine detection train
    hardmine compare runs/* --markdown       # to paste into a document

Every argument is a finished run's --workdir. Runs of one task on one dataset are one table. Runs that
differ in nothing but their seed are one row: the mean over them, and after ± their standard deviation (with
n - 1), which one run does not have. The columns before the scores are the settings in which the rows differ;
on a narrow terminal a row has them one below the other, and its scores in several tables. Two rows whose
difference is small beside what the seeds do are not told apart by this table.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import rich.cells
import rich.console
import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from hardmine_jax.data import files
from hardmine_jax.data.problems import DataError, printable, shorten
from hardmine_jax.tasks.config_json import read_config
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.flags import FREE, check_numbers, flag
from hardmine_jax.tasks.page import number, percent

# Settings that change nothing of what is learned, beside those that may change within a run; and where the
# data lies: what it is stands above the table.
_SILENT = {
    *FREE, "keep_last", "checkpoint_every", "evaluate_every", "data_dir", "annotations", "images",
    "validation_annotations", "validation_images",
}  # fmt: skip
_SCRIPTS = "hardmine pose train or hardmine detection train"
_WIDEST = 48


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
    Score(("mfu",), "MFU"),
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
    """A finished run.

    Attributes:
      kind: task and data in words: runs of one kind are compared.
      settings: flat, without the seed.
      seed: of weights, order and augmentation.
      result: what result.json holds.
      name: of its folder.
    """

    kind: str
    settings: dict[str, Any]
    seed: int
    result: dict[str, Any]
    name: str


def read_run(workdir: pathlib.Path) -> Run:
    """What a run was and what came of it.

    Raises:
      DataError: the folder holds no finished run.
    """
    config, path = _read_settings(workdir), workdir / "result.json"
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file: give --workdirs of finished runs")
    try:
        result = dict(json.loads(files.read_bytes(path)))
    except FileNotFoundError as error:
        raise DataError(f"no {path}: give --workdirs of finished runs") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is of no finished run: give --workdirs of finished runs") from error
    task = "pose" if "heatmap_sigma" in config or "pck" in result else "detection"
    # What is not given is the same whether the run's version knew the flag or not.
    settings = {name: given for name, given in config.items() if name not in _SILENT and given is not None}
    return Run(_kind(task, config), settings, settings.pop("seed"), result, pathlib.Path(workdir).name)


def _read_settings(workdir: pathlib.Path) -> dict[str, Any]:
    (config,) = read_config(workdir, {"config": None}, script=_SCRIPTS)
    try:
        settings = flatten(config)
        if not isinstance(settings["seed"], int):
            raise TypeError(f"seed is {settings['seed']!r:.100}")
        return settings
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        path = pathlib.Path(workdir) / "config.json"
        raise DataError(
            f"{path} is no config.json of {_SCRIPTS} ({error}): give the --workdir of a run"
        ) from error


def _kind(task: str, config: Mapping[str, Any]) -> str:
    """
    >>> _kind("pose", {"dataset": "coco", "annotations": "data/mouse.json", "category": "mouse"})
    'pose, coco: mouse.json, category mouse'
    """
    files = [str(config[name]) for name in ("annotations", "validation_annotations") if config.get(name)]
    parts = [" and ".join(pathlib.PurePath(path).name for path in files)]
    # Where there are no files: another folder may be other data, and the same that was moved.
    parts += [f"category {_setting(config['category'])}"] if config.get("category") else []
    data = ", ".join(filter(None, parts))
    dataset = config.get("dataset", "data without a name")
    return printable(f"{task}, {dataset}{': ' if data else ''}{data}")


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
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return found if is_number and math.isfinite(found) else None


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
    text = ", ".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    return percent(None) if given is None else shorten(printable(text), _WIDEST)


def run(config: CompareConfig, console: rich.console.Console | None = None) -> None:
    """Prints the tables."""
    check_numbers(config)
    if not config.workdirs:
        raise DataError("no run: name at least one --workdir of hardmine pose train or detection train")
    kinds: dict[str, list[Run]] = {}
    for one in map(read_run, config.workdirs):
        kinds.setdefault(one.kind, []).append(one)
    console = console or rich.console.Console(highlight=False)
    for place, (kind, runs) in enumerate(kinds.items()):
        headings, lines = rows(runs)
        if config.markdown:
            title = [f"**{kind}**", ""] if len(kinds) > 1 else []
            print("\n".join([*[""] * bool(place), *title, *_markdown(headings, lines)]))
            continue
        console.print(f"{escape(kind)}: {_count(runs)}", style="bold")
        if not any(score.heading in headings for score in SCORES):
            console.print("none of them has a score in its result.json")
        settings = headings.index("seeds")
        for table in tables(headings, lines, settings=settings, width=console.width):
            console.print(table)


def _count(runs: Sequence[Run]) -> str:
    """How many runs, and which, so that no table is without a name."""
    names = shorten(", ".join(printable(run.name) for run in runs), _WIDEST)
    return f"{len(runs)} run{'s' * (len(runs) > 1)} ({names})"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (headings, ["---"] * len(headings), *lines):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def tables(
    headings: Sequence[str], lines: Sequence[Sequence[str]], *, settings: int, width: int
) -> list[Table]:
    """The table, or where it would be too wide several of the same rows, none wider than `width`.

    Args:
      headings, lines: what `rows` gives; the first `settings` columns are the settings.
      width: in letters.
    """
    widths = [_width(column) for column in zip(headings, *lines, strict=True)]
    if sum(widths) + 1 <= width:
        return [_table(headings, lines, settings)]
    names = [[f"{headings[i]} {line[i]}" for i in range(settings)] for line in lines]
    rest = max(width - 1 - _widest_name(names, width), 1)
    parts: list[list[int]] = [[]]
    used = 0
    for column in range(settings, len(headings)):
        if parts[-1] and used + widths[column] > rest:
            parts, used = [*parts, []], 0
        parts[-1].append(column)
        used += widths[column]
    return [
        _table(
            ["settings", *(headings[i] for i in part)],
            [["\n".join(name), *(line[i] for i in part)] for name, line in zip(names, lines, strict=True)],
            1,
            show_lines=settings > 1,
        )
        for part in parts
    ]


def _width(cells: Sequence[str]) -> int:
    # A space on either side.
    return max(map(rich.cells.cell_len, cells)) + 2


def _widest_name(names: Sequence[Sequence[str]], width: int) -> int:
    """Of the column of settings, which may break its lines to leave half of the width to the scores."""
    return min(max((_width(name) for name in names if name), default=0), width // 2)


def _table(
    headings: Sequence[str], lines: Sequence[Sequence[str]], settings: int, *, show_lines: bool = False
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_lines=show_lines)
    for place, heading in enumerate(headings):
        if place < settings:
            table.add_column(escape(heading), overflow="fold")
        else:
            table.add_column(escape(heading), justify="right", no_wrap=True)
    for cells in lines:
        table.add_row(*map(escape, cells))
    return table


def parse(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> CompareConfig:
    """The command line."""
    return tyro.cli(CompareConfig, prog=prog, args=arguments, description=__doc__)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """0, or 2 after one line about what is wrong."""
    config = parse(arguments, prog=prog)
    return run_to_exit_code(lambda: run(config))
