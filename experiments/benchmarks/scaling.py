"""What a training step's collectives move on 1 to 8 devices, and what it costs on thousands, on paper.

    python experiments/benchmarks/scaling.py                    # everything, under 6 minutes on 2 CPU cores
    python experiments/benchmarks/scaling.py --parts paper --tpu.utilisation 0.4         # a few seconds
    python experiments/benchmarks/scaling.py --parts devices --num-devices 1 8 --programs pose_global

The training steps of `pose_ohkm` and `detection_ohem`, and both with mining over the whole global batch, are
compiled by shard_map for a fixed number of images a device. What they move is read from the compiled HLO, and
claims about it are checked; one that does not hold ends with exit code 1. Simulated devices and processes
share the cores: their times show overhead, not speed-up.
"""

import pathlib
import sys
import tempfile
from collections.abc import Iterator

import rich.console
import scaling_claims
import scaling_paper
from scaling_config import Config, check_config, machines
from scaling_tables import checks_table, host, measured_table
from scaling_workers import start_worker, work

from hardmine_jax.tasks.flags import parse_flags


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
        for table in scaling_paper.tables(config.paper, machines(config)):
            console.print(table)
        console.print(scaling_paper.assumptions(config.paper, machines(config)))
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
        sys.exit(main(parse_flags(Config)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
