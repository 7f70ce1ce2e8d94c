"""TPUs that are not there: their topologies, and a program compiled for one as a row of numbers.

Cycles are the compiler's estimates for what runs on one device, not times. The clock follows from the peak:
a cycle is one multiply-add of every cell of the matrix units.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import collectives
import jax
import jax.experimental.topologies
import rich
import tpu_hlo

from hardmine_jax.training.peak_flops import peak_flops

Row = dict[str, Any]


class Chip(NamedTuple):
    """What JAX counts as one device: 10^9 bytes of memory, multiply-adds of its matrix units a cycle."""

    gigabytes: float
    cells: int


# By device kind; docs.cloud.google.com/tpu/docs, pages of the versions. A TPU7x is two devices.
CHIPS = {
    "TPU v4": Chip(32, 8 * 128**2),
    "TPU v5 lite": Chip(16, 4 * 128**2),
    "TPU v5": Chip(95, 8 * 128**2),
    "TPU v6 lite": Chip(32, 4 * 256**2),
    "TPU7x": Chip(96, 4 * 256**2),
}
# What libtpu would ask a TPU's own machine for, and log where there is none.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip


def topology(name: str) -> list[jax.Device]:
    """The devices of a topology, "v5e:2x2" or "v5p:2x2x1".

    Raises:
      ValueError: libtpu is not installed, or knows no such topology, or CHIPS not its chip.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"libtpu, the compiler for TPU, is not installed: pip install 'jax[tpu]=={jax.__version__}' (no "
            "TPU is needed)"
        )
    for key, value in _ALONE.items():
        os.environ.setdefault(key, value)
    # As jax has it on a v4 machine: both cores of a chip are one device.
    more = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        found = jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"--topology {name}: {said}: give one as v5e:2x2, v5p:2x2x1, v6e:2x2") from error
    kind = found.devices[0].device_kind
    if kind not in CHIPS:
        raise ValueError(f"--topology {name}: {kind} is none of {', '.join(CHIPS)}: add its figures to CHIPS")
    return list(found.devices)


def placed(operands: Any, device: jax.Device) -> Any:
    """Shapes on this device, those aside that have their place already."""
    there = jax.sharding.SingleDeviceSharding(device)

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or there)

    return jax.tree.map(place, operands)


def clock(kind: str) -> float:
    """Cycles a second."""
    peak = peak_flops(kind, "bfloat16")
    assert peak is not None, kind
    return peak / (2 * CHIPS[kind].cells)


def compiled(
    lower: Callable[[], jax.stages.Lowered], device: jax.Device, read: Callable[[str], Row] = lambda text: {}
) -> Row:
    """A row of what the compiler says and what `read` finds in its text, or of why it refuses."""
    start = time.perf_counter()
    try:
        lowered = lower()
        row: Row = {"lower_s": round(time.perf_counter() - start, 1)}
        start, busy = time.perf_counter(), time.process_time()
        program = lowered.compile()
    except Exception as error:  # Whether it compiles is the question.
        return {"compiles": False, "error": f"{type(error).__name__}: {_first_line(error)}"}
    row |= {"compiles": True, "compile_s": round(time.perf_counter() - start, 1)}
    # Of all threads: what another machine, with other cores and other work, takes alike.
    row["compile_cpu_s"] = round(time.process_time() - busy, 1)
    text = program.as_text()
    return row | memory(program, device) | costs(text, device) | read(text)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def memory(program: jax.stages.Compiled, device: jax.Device) -> Row:
    """Bytes on one device: what goes in, comes out in other places, and lies between."""
    found = program.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    total = kept + found.temp_size_in_bytes + found.generated_code_size_in_bytes
    share = total / (1e9 * CHIPS[device.device_kind].gigabytes)
    return {"memory": total, "memory_share": round(share, 4), "temporaries": found.temp_size_in_bytes}


def costs(text: str, device: jax.Device) -> Row:
    """Cycles, launches and collectives, from the text of the compiled program."""
    program = tpu_hlo.parse(text)
    launches, total = program.launches, tpu_hlo.cycles(program.launches)
    moving = tpu_hlo.cycles([one for one in launches if one.opcode.startswith(collectives.KINDS)])
    moved: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for one in collectives.parse(text):
        moved[one.kind] += one.nbytes
        number[one.kind] += 1
    lying = [one.shape for one in launches]
    return {
        "cycles": total,
        "cycles_collectives": moving,
        "milliseconds": 1e3 * total / clock(device.device_kind),
        "launches": sum(one.times for one in launches),
        "no_estimate": _without_estimate(launches),
        "unknown_loops": program.unknown_loops,
        "collectives": {kind: [number[kind], moved[kind]] for kind in number},
        "padding": round(_padding(lying), 3),
        "dominant": dominant(launches, total),
    }


def _without_estimate(launches: Sequence[tpu_hlo.Launch]) -> dict[str, list[int]]:
    """By what it does: how often, and bytes of the results."""
    found: dict[str, list[int]] = {}
    for one in launches:
        if one.cycles is None:
            times, size = found.get(one.opcode, [0, 0])
            found[one.opcode] = [times + one.times, size + one.times * tpu_hlo.nbytes(one.shape)]
    return found


def _padding(shapes: Sequence[str]) -> float:
    """Bytes of all results as they lie in tiles, over their own."""
    return sum(tpu_hlo.nbytes(shape, padded=True) for shape in shapes) / max(
        1, sum(map(tpu_hlo.nbytes, shapes))
    )


def dominant(launches: Sequence[tpu_hlo.Launch], total: int, most: int = 5) -> list[list[Any]]:
    """Where the cycles go: name of the traced operation, what is launched for it, share."""
    found: Counter[tuple[str, str]] = Counter()
    for one in launches:
        source = "/".join(part for part in one.source.split("/")[-3:] if "(" not in part)
        found[source, one.opcode] += one.times * (one.cycles or 0)
    return [[*name, round(part / max(1, total), 3)] for name, part in found.most_common(most)]


def about() -> dict[str, str]:
    """Date, and versions of what compiled."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {"date": datetime.date.today().isoformat(), **versions}


class Rows:
    """What was compiled, in memory and where asked for in a file."""

    def __init__(self, path: pathlib.Path | None):
        self.path, self.about = path, about()
        try:
            text = path.read_text() if path and path.exists() else ""
            self.all: list[Row] = [json.loads(line) for line in text.splitlines()]
        except (OSError, ValueError) as error:
            raise ValueError(f"--json {path}: no file of rows, one a line ({error})") from error

    def get(self, names: Row, make: Callable[[], Row]) -> Row:
        """The row of these names and of these versions of the compiler, made where it is not there."""
        wanted = names | {name: self.about[name] for name in ("jax", "libtpu")}
        for row in self.all:
            if wanted.items() <= row.items():
                return row
        rich.print(f"[dim]{' | '.join(map(str, names.values()))}[/dim]", flush=True)
        self.all.append(names | make() | self.about)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(self.all[-1]) + "\n")
        return self.all[-1]
