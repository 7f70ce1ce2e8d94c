"""The tables of what was compiled for TPU."""

import collectives
import rich.table
from tpu_chips import Row

# Without an estimate, but no more than a pass over their results; and collectives, which stand apart.
MOVES = {"reshape", "copy", "slice", "pad", "concatenate", "transpose", "broadcast", *collectives.KINDS}
CAPTION = (
    "Compiled without a TPU. Estimates are the compiler's cycles by the chip's clock, not times. What has no "
    "estimate counts as nothing and is named; > where that is more than moving data. Memory is on one device."
)


def kernels_table(title: str, rows: list[Row]) -> rich.table.Table:
    """Ways to each question, ours first."""
    made = rich.table.Table(title=title, caption=CAPTION, caption_justify="left")
    columns = ("estimate, us", "times ours", "launches", "temporaries, MB", "compile s")
    for name in ("way", *columns, "without estimate", "dominant"):
        made.add_column(name, justify="right" if name in columns else "left")
    for question in dict.fromkeys(row["question"] for row in rows):
        ways = [row for row in rows if row["question"] == question]
        made.add_row(f"[bold]{question}")
        for row in ways:
            made.add_row(f"  {row['way']}", *_kernel_cells(row, ways[0]))
    return made


def _kernel_cells(row: Row, ours: Row) -> list[str]:
    if not row["compiles"]:
        return ["does not compile", "", "", "", "", row["error"][:80]]
    ratio = row["cycles"] / ours["cycles"] if ours.get("cycles") else None
    least = "> " if is_least(row) else ""
    return [
        f"{least}{1e3 * row['milliseconds']:,.1f}",
        "" if ratio is None else f"{least}{ratio:.2f}",
        f"{row['launches']:,}",
        f"{row['temporaries'] / 1e6:,.1f}",
        f"{row['lower_s'] + row['compile_s']:,.1f}",
        without_estimate(row),
        dominant(row, 1),
    ]


def steps_table(title: str, rows: list[Row]) -> rich.table.Table:
    """A row for each step, and below it where its cycles go."""
    made = rich.table.Table(title=title, caption=CAPTION, caption_justify="left")
    columns = (
        "images each",
        "estimate, ms",
        "of peak",
        "memory, GB",
        "of the chip's",
        "padding",
        "lower s",
        "compile s (CPU)",
    )
    for name in ("step", *columns, "collectives", "without estimate", "dominant"):
        made.add_column(name, justify="right" if name in columns else "left")
    for row in rows:
        made.add_row(row["question"], f"{row['images']}", *_step_cells(row))
    return made


def _step_cells(row: Row) -> list[str]:
    if not row["compiles"]:
        return ["does not compile", *[""] * 7, row["error"][:80], ""]
    return [
        f"{'> ' if is_least(row) else ''}{row['milliseconds']:,.1f}",
        f"{100 * row['share_of_peak']:.1f} %",
        f"{row['memory'] / 1e9:,.2f}",
        f"{100 * row['memory_share']:.0f} %",
        f"{row['padding']:.2f}",
        f"{row['lower_s']:,.0f}",
        f"{row['compile_s']:,.0f} ({row['compile_cpu_s']:,.0f})",
        moved(row),
        without_estimate(row),
        dominant(row, 5),
    ]


def is_least(row: Row) -> bool:
    """Whether something that takes its time has no estimate; collectives aside."""
    return bool(row["unknown_loops"]) or not MOVES.issuperset(row["no_estimate"])


def moved(row: Row) -> str:
    """Collectives by kind and by purpose: how many, and bytes."""
    named = [*row["collectives"].items(), *row.get("purposes", {}).items()]
    return "\n".join(f"{number} {name} {size / 1e6:,.2f} MB" for name, (number, size) in named) or "none"


def without_estimate(row: Row) -> str:
    """What the estimate leaves out: how often, and bytes of results where they are many."""
    named = []
    for opcode, (times, size) in sorted(row["no_estimate"].items(), key=lambda item: -item[1][1]):
        named.append(f"{times} {opcode}" + (f" {size / 1e6:,.0f} MB" if size >= 1e6 else ""))
    loops = len(row["unknown_loops"])
    return ", ".join(named[:4] + ([f"{loops} loops of unknown length"] if loops else []))


def dominant(row: Row, most: int) -> str:
    """Where the cycles go."""
    return "\n".join(
        f"{100 * share:.0f} % {opcode} {source}" for source, opcode, share in row["dominant"][:most]
    )
