"""The tables of what a step costs on paper, and everything that they rest on."""

import rich.table
from scaling_hardware import ASSUMED, Hardware, share_of_peak
from scaling_model import Costs, Paper, Work, costs, detection, pose


def tables(paper: Paper, machines: dict[str, Hardware]) -> list[rich.table.Table]:
    """For each machine and network a table of the step's parts, and one of what mining does."""
    made = []
    works = [pose(paper), detection(paper)]
    for hardware in machines.values():
        for work in works:
            rows = {count: costs(work, count, paper.fixed_k, hardware) for count in paper.devices}
            share = _percent(share_of_peak(hardware, work.step))
            made.append(
                _parts(f"On paper: {work.name} on {hardware.name}, at {share} of its peak", work, rows)
            )
            made.append(
                _mining(f"Its mining, {work.units:,} units on each device", work, rows, paper.fixed_k)
            )
    return made


def _parts(title: str, work: Work, rows: dict[int, Costs]) -> rich.table.Table:
    made = rich.table.Table(title=title, caption=_caption(work), caption_justify="left")
    columns = (
        "devices", "compute ms", "gradient ms", "mining ms", "metrics ms", "efficiency, no overlap",
        "gradient behind backward", "sync. batch norm ms", "efficiency with it",
    )  # fmt: skip
    for column in columns:
        made.add_column(column, justify="right")
    for count, cost in rows.items():
        seconds = (cost.compute, cost.gradient, cost.mining.seconds, cost.metrics)
        shares = [_percent(cost.efficiency(overlap=overlap)) for overlap in (False, True)]
        norms = ["none", ""]
        if work.norms:
            both = cost.efficiency(overlap=True, synchronised=True)
            norms = [_milliseconds(cost.norms), _percent(both)]
        made.add_row(f"{count:,}", *map(_milliseconds, seconds), *shares, *norms)
    return made


def _mining(title: str, work: Work, rows: dict[int, Costs], fixed_k: int) -> rich.table.Table:
    made = rich.table.Table(title=title)
    columns = ("devices", "k", "kB sent by each", "kB received", "all-gather ms", "top-k over them ms")
    for column in columns:
        made.add_column(column, justify="right")
    for name, cell in (("grows", "mining"), ("fixed", "fixed")):
        for count, cost in rows.items():
            one = getattr(cost, cell)
            k = work.hard * count if cell == "mining" else min(fixed_k, work.units * count)
            moved = (f"{one.sent / 1e3:,.2f}", f"{one.received / 1e3:,.1f}")
            times = map(_milliseconds, (one.moving, one.choosing))
            made.add_row(f"{count:,}", f"{k:,}, {name}", *moved, *times)
        made.add_section()
    return made


def _caption(work: Work) -> str:
    return (
        f"a device: {work.multiply_adds / 1e9:,.0f} 10^9 multiply-adds, {work.gradient / 1e6:,.1f} MB of "
        f"float32 gradient and batch statistics, {work.hard:,} hard of {work.units:,} units, "
        f"{len(work.norms)} layers of batch norm"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def assumptions(paper: Paper, machines: dict[str, Hardware]) -> str:
    """Everything that the tables rest on, and where they are weak."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in vars(hardware).items()) for hardware in machines.values()
    ]
    lines += [
        "Units: peak TFLOP/s, memory and links GB/s one way of one device, hops and start in microseconds.",
        f"Weak scaling, on each device: {paper.pose_images} crops of 256x192, or {paper.detection_images} "
        f"pictures of {paper.detection_size[0]}x{paper.detection_size[1]} with {paper.proposals:,} regions.",
        "Without a given utilisation it is that of the step as compiled for that TPU, by the compiler's own "
        f"cycles and without collectives (tpu_compile.jsonl); {ASSUMED} where it was not.",
        "Compute is multiply-adds of convolutions and matrix products in bfloat16 alone; RoI pooling, "
        "optimizer, input and the gradient to the image are left out. Training is 3 forward passes; of Fast "
        "R-CNN's head one over all regions and 3 over the hard ones.",
        "One all-reduce of all gradients in float32, one all-gather for mining, 1 or 2 all-reduces for "
        "metrics; synchronised batch norm 2 all-reduces a layer (XLA merges some of parallel branches).",
        "Gradient hidden behind the backward pass: at most two thirds of the compute; XLA merged into one "
        "reduction, as measured above, it starts at the end and nothing is hidden.",
        "Mining in the table of parts is with k growing: --paper.pose-k, --paper.detection-k an image, times "
        "images, times devices. Once k exceeds a device's units, each sends all: what is received and looked "
        "through is O(units x devices). With k fixed (--paper.fixed-k) it is O(k x devices).",
        "Two passes over the hard regions need a buffer of fixed length on each device; here it is exactly "
        "the average share of k. The hardest of a global batch are not spread evenly: a longer buffer costs "
        "compute, a shorter one drops regions.",
        "No stragglers, no other traffic; every step waits for its slowest device.",
    ]
    return "\n".join(f"- {line}" for line in lines)
