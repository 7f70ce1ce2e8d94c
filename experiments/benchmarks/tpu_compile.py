"""What the compiler for TPU makes of this package's operations and training steps, on a machine without one.

    pip install 'jax[tpu]'                                             # brings libtpu, which is the compiler
    python experiments/benchmarks/tpu_compile.py --parts kernels       # 10 minutes on 2 cores
    python experiments/benchmarks/tpu_compile.py --topology v5p:2x2x1 --json tpu.jsonl
    python experiments/benchmarks/tpu_compile.py --parts steps --only laptop cpn_50 --json tpu.jsonl

Whether each compiles and fits, what memory and collectives it takes, the compiler's own estimate of cycles
summed over loops, what has none, and what dominates. Estimates are no times: they rank ways to one answer.
Where a function has a branch of its own for XLA:CPU, what that would be on TPU stands beside it. With --json
what is there already is not compiled again. Steps take minutes each, HRNet's the better part of an hour;
one that does not fit is tried with half the images. Kernels need jax, flax, optax, numpy and rich; steps
all that training needs.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import rich.console
import tpu_chips
import tpu_kernels
import tpu_layers
import tpu_tables
from tpu_chips import Row

from hardmine_jax.training.peak_flops import peak_flops


def kernel_rows(args: argparse.Namespace, rows: tpu_chips.Rows, devices: list[jax.Device]) -> Iterator[Row]:
    """Each way to each question; ours also by its branch for XLA:CPU where it has one."""
    found = [*tpu_kernels.kernels(), *tpu_layers.kernels(devices)]
    for kernel in found:
        if not is_wanted(kernel.question, args.only):
            continue
        operands = tpu_chips.placed(kernel.operands, devices[0])
        for number, (way, function) in enumerate(kernel.ways.items()):
            if number and args.quick:
                break
            names = {"topology": args.topology, "question": kernel.question, "way": way}
            lower = functools.partial(tpu_kernels.lowered, function, operands)
            yield rows.get(names, lambda lower=lower: tpu_chips.compiled(lower, devices[0]))
            if number or args.quick or not tpu_kernels.has_cpu_branch(function, operands):
                continue
            lower = functools.partial(tpu_kernels.lowered, function, operands, on_cpu=True)
            names = names | {"way": f"{way}, as on a CPU"}
            yield rows.get(names, lambda lower=lower: tpu_chips.compiled(lower, devices[0]))


def step_rows(args: argparse.Namespace, rows: tpu_chips.Rows, devices: list[jax.Device]) -> Iterator[Row]:
    """Each training step; one that does not fit with half the images, and so on."""
    import tpu_steps

    for step in tpu_steps.STEPS[: 1 if args.quick else None]:
        images = args.images or step.images
        while images and is_wanted(step.name, args.only):
            names = {"topology": args.topology, "question": step.name, "images": images}
            row = rows.get(names, lambda step=step, images=images: compiled_step(step, devices, images))
            yield row
            images = 0 if row["compiles"] or "RESOURCE_EXHAUSTED" not in row["error"] else images // 2


def compiled_step(step: Any, devices: list[jax.Device], images: int) -> Row:
    """A row, with what share of the chip's peak the estimate leaves to the step's products."""
    import tpu_steps

    made = tpu_steps.make(step, devices, images)
    peak, flops = peak_flops(devices[0].device_kind, "bfloat16"), made.flops()
    row = tpu_chips.compiled(made.lower, devices[0], made.moved)
    if not row["compiles"]:
        return row
    # Collectives are reckoned apart, in scaling_model.
    seconds = (row["cycles"] - row["cycles_collectives"]) / tpu_chips.clock(devices[0].device_kind)
    return row | {"flops": flops, "share_of_peak": flops / (peak * seconds)}


def is_wanted(name: str, only: list[str]) -> bool:
    return not only or any(text in name for text in only)


def main(args: argparse.Namespace) -> int:
    """Prints a table of each part; 1 where something does not compile as asked for."""
    if args.images < 0:
        raise ValueError(f"--images {args.images} must be 1 or more")
    # Before anything asks for a device: that would take a TPU that is there.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    devices = tpu_chips.topology(args.topology)
    rows, console = tpu_chips.Rows(args.json), rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=200)
    parts = {"kernels": (kernel_rows, tpu_tables.kernels_table), "steps": (step_rows, tpu_tables.steps_table)}
    about = f"{len(devices)} x {devices[0].device_kind} ({args.topology})"
    versions = f"jax {rows.about['jax']}, libtpu {rows.about['libtpu']}"
    everything: list[Row] = []
    for part in args.parts:
        find, table = parts[part]
        found = list(find(args, rows, devices))
        if found:
            console.print(table(f"{part}, {about}, {versions}", found))
        everything += found
    if not everything:
        raise ValueError(f"--only {' '.join(args.only)}: nothing in {' and '.join(args.parts)} is named so")
    # A step that does not fit was tried with fewer images.
    done = {(row["question"], row.get("way")) for row in everything if row["compiles"]}
    refused = {row["question"] for row in everything if (row["question"], row.get("way")) not in done}
    if refused:
        print(f"error: {len(refused)} do not compile: {', '.join(refused)}", file=sys.stderr)
    return 1 if refused else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, by default of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--topology", default="v5e:2x2", help="v5p:2x2x1, v6e:2x2, v4:2x2x1, tpu7x:2x2x1 ...")
    made.add_argument("--parts", nargs="+", choices=("kernels", "steps"), default=["kernels", "steps"])
    made.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="those with this in their names")
    made.add_argument("--quick", action="store_true", help="of each question our way, of the steps the first")
    made.add_argument(
        "--images", type=int, default=0, help="on each device in a step; by default as published"
    )
    made.add_argument("--json", type=pathlib.Path, help="where rows go and come from, one a line")
    return made.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(parse()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
