"""What this package costs on the GPU or TPU that is there, in one command of at most eight minutes.

    python experiments/benchmarks/accelerator.py --json accelerator.json
    python experiments/benchmarks/accelerator.py --only pose --dtypes bfloat16 --minutes 4

Needs jax, flax, optax, numpy and rich. PyTorch and torchvision take part, on the same card in the same run,
where they are installed. Ways to one answer are checked to agree, then take turns; times are medians.
Operations are compared in float32 on both sides; training steps in what either takes for float32 by itself
(TF32 on NVIDIA's cards), and in bfloat16. MFU is the products of our step a second, against what the chip
could do. What the minutes no longer reach is named. `--small` is for trying the script on a processor.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import sys
import time

import rich
import rich.table
import timing
from accelerator_parts import PARTS, SMALL, Row, Sizes


def printed(rows: list[Row]) -> rich.table.Table:
    """One question's rows."""
    made = rich.table.Table(title=rows[0]["question"], caption=timing.host())
    columns = [name for name in rows[0] if name not in ("question",)]
    for name in columns:
        made.add_column(name.replace("_", " "), justify="left" if name == "way" else "right")
    for row in rows:
        values = (row.get(name) for name in columns)
        made.add_row(*("" if v is None else v if isinstance(v, str) else f"{v:,.3g}" for v in values))
    return made


def measure(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """All rows, and what there was no time for."""
    sizes, until = SMALL if args.small else Sizes(), time.monotonic() + 60 * args.minutes
    rows, left = [], []
    for part in args.only:
        # Answers are compared to four digits.
        timing.full_precision("highest" if part in ("operations", "heads") else None)
        found = PARTS[part](sizes, args.rounds, tuple(args.dtypes))
        while time.monotonic() < until:
            more = next(found, None)
            if more is None:
                break
            rows += more
            rich.print(printed(more))
        else:
            left.append(part)
    return rows, left


def main(args: argparse.Namespace) -> None:
    """Prints a table for each question, and writes all rows."""
    rows, left = measure(args)
    for part in left:
        print(f"{part}: not all of it, {args.minutes:g} minutes were over")
    if args.json:
        about = {"date": datetime.date.today().isoformat(), "host": timing.host(), "versions": _versions()}
        args.json.write_text(json.dumps({**about, "not_finished": left, "rows": rows}, indent=1) + "\n")


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def parser() -> argparse.ArgumentParser:
    """Flags; argparse, for it is there wherever Python is."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    made.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    made.add_argument("--minutes", type=float, default=7.0, help="no question is begun after that")
    made.add_argument("--rounds", type=int, default=15, help="turns of each way")
    made.add_argument("--json", type=pathlib.Path, help="where all rows go")
    made.add_argument("--small", action="store_true", help="sizes for a processor")
    return made


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
