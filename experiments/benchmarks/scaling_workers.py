"""Measuring on another number of devices than this process has: scaling.py, started again as a worker."""

import json
import os
import pathlib
import subprocess
import sys

import rich
import scaling_claims
from scaling_config import Config
from scaling_measure import measurements

from hardmine_jax.job import distributed, exchange
from hardmine_jax.tasks.exit_codes import explain

SCRIPT = pathlib.Path(__file__).resolve().with_name("scaling.py")


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
        str(SCRIPT),
        "--worker",
        str(path),
        "--programs",
        *programs,
        *sizes,
        "--vary" if vary else "--no-vary",
    ]
    launch = [str(SCRIPT.parents[2] / "launch" / "local.py"), "--retries", "0"]
    launch += ["--processes", str(processes), "--devices", str(devices), "--"]
    command = [sys.executable, *(own if processes is None else launch + own)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or "nothing on stderr").splitlines()
        said = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise ValueError(f"a worker stopped with status {done.returncode}: {said}")
    return [scaling_claims.from_json(one) for one in json.loads(path.read_text())]
