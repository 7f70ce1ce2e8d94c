"""What a training step's collectives move on 1 to 8 devices, and what it costs on thousands, on paper.

    python experiments/benchmarks/scaling.py                    # everything, under 6 minutes on 2 CPU cores
    python experiments/benchmarks/scaling.py --parts paper --tpu.utilisation 0.4         # a few seconds
    python experiments/benchmarks/scaling.py --parts devices --num-devices 1 8 --programs pose_global

The training steps of `pose_ohkm` and `detection_ohem`, and both with mining over the whole global batch, are
compiled by shard_map for a fixed number of images a device. What they move is read from the compiled HLO, and
claims about it are checked; one that does not hold ends with exit code 1. Simulated devices and processes
share the cores: their times show overhead, not speed-up.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import collectives
import jax
import numpy as np
import optax
import rich
import rich.console
import rich.table
import scaling_claims
import scaling_model
import scaling_steps
import timing
import tyro
from jax.experimental.compilation_cache import compilation_cache

from hardmine_jax import training
from hardmine_jax.data.pose.coco import COCO_SKELETON
from hardmine_jax.job import distributed, exchange
from hardmine_jax.tasks.exit_codes import explain

Part = Literal["devices", "processes", "paper"]
WARM_UP = 2
OTHER_NETWORK = ("--model", "simple_baseline_18")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured and reckoned.

    Attributes:
      parts: simulated devices, processes, the model on paper.
      programs: the training steps measured on simulated devices.
      num_devices: how many are simulated, each number in a process of its own.
      process_programs: the training steps measured in several processes.
      processes: how many, two by two with the simulated devices of each.
      vary: also compile at twice the images, twice the k and for another network, and compare.
      sizes: of the measured steps.
      paper: what is reckoned on paper.
      tpu: the first machine of the paper, TPU v5p.
      gpu: the second, H100 with NVLink and InfiniBand.
      worker: used by itself: measure on the devices there are and write that file.
      distributed: used by itself, and the next three, as launch/local.py appends them.
    """

    parts: tuple[Part, ...] = ("devices", "processes", "paper")
    programs: tuple[scaling_steps.ProgramName, ...] = (
        "pose", "pose_own_norm", "pose_global", "detection", "detection_global",
    )  # fmt: skip
    num_devices: tuple[int, ...] = (1, 2, 4, 8)
    process_programs: tuple[scaling_steps.ProgramName, ...] = ("pose_global", "detection")
    processes: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 4))
    vary: bool = True
    sizes: scaling_steps.Sizes = scaling_steps.Sizes()
    paper: scaling_model.Paper = scaling_model.Paper()
    tpu: scaling_model.Hardware = scaling_model.TPU_V5P
    gpu: scaling_model.Hardware = scaling_model.H100
    worker: pathlib.Path | None = None
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def measure(
    name: str, program: scaling_steps.Program, sizes: scaling_steps.Sizes, variation: str = ""
) -> scaling_claims.Measurement:
    """Compiles the step, runs it, and reads what it moves."""
    state, batch = program.parallel.put_state(program.state), program.parallel.put_batch(program.batch)
    start = time.perf_counter()
    lowered = program.parallel.train_step.lower(state, batch)
    with nothing_cached():
        compiled = lowered.compile()
    seconds = time.perf_counter() - start
    _, metrics = lowered.out_info
    # Made of the reduced gradient, on each device alike.
    metrics = [value.size for key, value in metrics.items() if key != "grad_norm"]
    reduced = [leaf.size for leaf in jax.tree.leaves((program.state.params, program.state.batch_stats))]
    found = collectives.parse(compiled.as_text())
    kinds = [one.kind for one in found]
    state, _ = compiled(state, batch)
    return scaling_claims.Measurement(
        program=name,
        variation=variation,
        processes=jax.process_count(),
        devices=jax.device_count(),
        parameters=4 * sum(reduced),
        equal=equal_bytes(program.parallel.get(state)),
        k=sizes.k if program.units else 0,
        units=program.units,
        step=step_seconds(compiled, state, batch, sizes.rounds),
        compile=seconds,
        groups=sorted({one.group for one in found}),
        collectives={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        shares=collectives.purposes(found, gradient=reduced, metrics=metrics),
    )


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
    """What compiles within it is compiled, whatever lies in a cache on disk."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    # Whether there is a cache is asked only once.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def equal_bytes(state: training.TrainState) -> int:
    """Bytes of the first step's gradient that another of its arrays has bit for bit.

    Where several batch norms are added up, as HRNet's branches are, the gradient of each one's bias is the
    same sum, and XLA finds that out. After one step Adam's first moment is a multiple of the gradient.
    """
    leaves = map(np.asarray, jax.tree.leaves(optax.tree.get(state.opt_state, "mu")))
    # Zeros are equal by chance: of a layer that sees one pixel, say, and normalises it to nothing.
    arrays = [array for array in leaves if array.any()]
    different = {(array.shape, array.tobytes()): array.nbytes for array in arrays}
    return sum(array.nbytes for array in arrays) - sum(different.values())


def step_seconds(compiled: Callable, state: Any, batch: Any, rounds: int) -> float:
    """Median time of a step after some that do not count; 0 for no rounds."""
    times = []
    for _ in range(WARM_UP + rounds if rounds else 0):
        start = time.perf_counter()
        # The state is donated: each step takes the last one's.
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:]) if rounds else 0.0


def measurements(
    names: tuple[scaling_steps.ProgramName, ...], sizes: scaling_steps.Sizes, *, vary: bool
) -> Iterator[scaling_claims.Measurement]:
    """Each program on the devices there are, and with `vary` what it is compared with."""
    for name in names:
        yield measure(name, scaling_steps.PROGRAMS[name](sizes), sizes)
    if not vary:
        return
    only = dataclasses.replace(sizes, rounds=0)
    images = dataclasses.replace(only, images=2 * sizes.images)
    twice = dataclasses.replace(only, k=2 * sizes.k)
    for name in names:
        if name.endswith("_global"):
            yield measure(name, scaling_steps.PROGRAMS[name](images), images, "images")
        if name == "detection_global":
            yield measure(name, scaling_steps.PROGRAMS[name](twice), twice, "k")
        if name == "pose_own_norm":
            yield measure(
                name, scaling_steps.pose(only, "--no-sync-batch-norm", *OTHER_NETWORK), only, "network"
            )


def work(config: Config) -> None:
    """Measures on the devices of this process, or of all processes, and writes them down."""

    def run() -> None:
        found = list(measurements(config.programs, config.sizes, vary=config.vary))
        if exchange.is_main():
            config.worker.write_text(json.dumps([one._asdict() for one in found]))

    if not config.distributed:
        run()
        return
    with distributed.joined(config.coordinator, config.num_processes, config.process_id, explain=explain):
        run()


def start_worker(
    config: Config, folder: pathlib.Path, *, devices: int, processes: int | None, vary: bool
) -> list[scaling_claims.Measurement]:
    """What a worker measures: on simulated devices of one process, or through launch/local.py.

    Args:
      folder: for its results, and for the compiled programs that make the first weights, which all share.

    Raises:
      ValueError: it failed.
    """
    programs = config.programs if processes is None else config.process_programs
    where = f"{devices} devices" if processes is None else f"{processes} process(es) of {devices} devices"
    rich.print(f"[dim]measuring on {where}: {' '.join(programs)}[/dim]", flush=True)
    sizes = [f"--sizes.{name.replace('_', '-')}={value}" for name, value in vars(config.sizes).items()]
    # Devices are counted when JAX starts, so that each number needs a process of its own.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    path = folder / "measured.json"
    path.unlink(missing_ok=True)
    own = [
        __file__,
        "--worker",
        str(path),
        "--programs",
        *programs,
        *sizes,
        "--vary" if vary else "--no-vary",
    ]
    launch = [str(pathlib.Path(__file__).resolve().parents[2] / "launch" / "local.py"), "--retries", "0"]
    launch += ["--processes", str(processes), "--devices", str(devices), "--"]
    command = [sys.executable, *(own if processes is None else launch + own)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or "nothing on stderr").splitlines()
        said = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise ValueError(f"a worker stopped with status {done.returncode}: {said}")
    return [scaling_claims.from_json(one) for one in json.loads(path.read_text())]


CAPTION = (
    "number of collectives: bytes that a device puts in (> bytes that it gets out, where these differ). A "
    "collective with several purposes counts for each.\nDevices and processes share this machine's cores: "
    "times show overhead, not speed-up. Compile times are cold, lowering included; 2 x ... and other network "
    "are compiled only."
)


def measured_table(title: str, found: list[scaling_claims.Measurement]) -> rich.table.Table:
    """A row for each measurement; bytes are those of one device."""
    made = rich.table.Table(title=title, caption=CAPTION, caption_justify="left")
    for column in ("program", "processes", "devices", "ms a step", "compile s", "collectives"):
        left = column in ("program", "collectives")
        made.add_column(column, justify="left" if left else "right", no_wrap=left)
    for purpose in collectives.PURPOSES:
        made.add_column(purpose, justify="right")
    for program in dict.fromkeys(one.program for one in found):
        for one in scaling_claims.of_program(found, program):
            step = f"{1e3 * one.step:,.0f}" if one.step else ""
            kinds = ", ".join(f"{number} {kind}" for kind, number in one.collectives.items()) or "none"
            cells = (_cell(one.shares[purpose]) for purpose in collectives.PURPOSES)
            name = f"{program} {scaling_claims.VARIED[one.variation]}".strip()
            numbers = (str(one.processes), str(one.devices), step, f"{one.compile:.1f}")
            made.add_row(name, *numbers, kinds, *cells)
        made.add_section()
    return made


def _cell(share: collectives.Share) -> str:
    """Number of collectives and bytes; what is sent and what arrives where these differ."""
    if not share.collectives:
        return "-"
    moved = f"{share.sent:,}" + (f" > {share.received:,}" if share.sent != share.received else "")
    return f"{share.collectives}: {moved} B"


def host() -> str:
    """Processor and versions; the devices are those of the workers."""
    return ", ".join(part for part in timing.host().split(", ") if "device" not in part)


def checks_table(made: list[scaling_claims.Check]) -> rich.table.Table:
    table = rich.table.Table("claim", "holds", title="What the collectives show")
    for check in made:
        more = f" and {len(check.against) - 1} more" if len(check.against) > 1 else ""
        table.add_row(check.claim, f"no: {check.against[0]}{more}" if check.against else "yes")
    return table


def check_config(config: Config) -> None:
    """Raises ValueError for a flag that makes no sense, before anything is started."""
    sizes = config.sizes
    if sizes.image_size < 32 or sizes.image_size % 32:
        raise ValueError(f"--sizes.image-size {sizes.image_size} must be a multiple of 32")
    least = {"images": 1, "k": 1, "proposals": 8, "rounds": 0}
    for name, low in least.items():
        if getattr(sizes, name) < low:
            raise ValueError(f"--sizes.{name} {getattr(sizes, name)} must be at least {low}")
    # Also at twice the k, on one device, there must be as many to choose from.
    most = sizes.images * min(COCO_SKELETON.num_keypoints, sizes.proposals) // 2
    if sizes.k > most:
        raise ValueError(f"--sizes.k {sizes.k}: at most {most}, half of a device's units: lower it")
    for name in ("parts", "programs", "num_devices", "process_programs", "processes"):
        if not getattr(config, name):
            raise ValueError(f"--{name.replace('_', '-')} needs at least one")
    if min(config.num_devices) < 1 or min(map(min, config.processes)) < 1:
        raise ValueError("--num-devices and --processes must be 1 or more")
    scaling_model.check(config.paper, machines(config))


def machines(config: Config) -> dict[str, scaling_model.Hardware]:
    return {"tpu": config.tpu, "gpu": config.gpu}


def main(config: Config) -> int:
    """Prints the tables; 1 after one line where a claim does not hold."""
    if config.worker is not None:
        work(config)
        return 0
    check_config(config)
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=190)
    found: list[scaling_claims.Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        for title, measured in measured_parts(config, pathlib.Path(folder)):
            console.print(measured_table(title, measured))
            found += measured
    made = scaling_claims.checks(found)
    if made:
        console.print(f"[dim]{host()}[/dim]")
        console.print(checks_table(made))
    if "paper" in config.parts:
        for table in scaling_model.tables(config.paper, machines(config)):
            console.print(table)
        console.print(scaling_model.assumptions(config.paper, machines(config)))
    failed = [check for check in made if check.against]
    for check in failed[:1]:
        print(f"error: {len(failed)} of {len(made)} claims do not hold: {check.claim}", file=sys.stderr)
    return 1 if failed else 0


def measured_parts(
    config: Config, folder: pathlib.Path
) -> Iterator[tuple[str, list[scaling_claims.Measurement]]]:
    """A title and what was measured, part by part."""
    sizes = config.sizes
    each = f"{sizes.images} images of {sizes.image_size} x {sizes.image_size} on each, k={sizes.k} over all"
    if "devices" in config.parts:
        measured = []
        for devices in config.num_devices:
            vary = config.vary and devices == max(config.num_devices)
            measured += start_worker(config, folder, devices=devices, processes=None, vary=vary)
        yield f"Simulated devices of one process: {each}", measured
    if "processes" in config.parts:
        measured = []
        for processes, devices in config.processes:
            measured += start_worker(config, folder, devices=devices, processes=processes, vary=False)
        yield f"Processes, joined by gloo: {each}", measured


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
