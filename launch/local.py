#!/usr/bin/env python3
"""N processes of a training script on this machine: the rehearsal for a pod, and how the tests run one.

    python launch/local.py --processes 2 --devices 4 -- experiments/pose_ohkm.py --steps 100

Needs: the packages of the script (`pip install -e ".[train]"`), no accelerator; itself only Python 3.11.
Costs: nothing; the processes share this machine's cores, each sees --devices simulated CPU devices.
Resume: a process that dies ends the others, and all start again from the last checkpoint, at most --retries
    times; after a start that ran for --steady they are counted anew. After Ctrl-C, a kill or a reboot, run
    the same command again: it goes on where it stood. With the script's `--no-resume` every launch starts
    anew, and its restarts go on.
Exit code: 0 done, or stopped by SIGTERM, SIGINT or SIGHUP (which nohup keeps away) after saving; 2 wrong
    flags or input, or a full disk, which no restart mends; 130 interrupted before there was anything to save;
    otherwise that of the process that died first (128 + signal).

Every process gets `--distributed --coordinator localhost:PORT --num-processes N --process-id I` appended, its
output comes prefixed with its number. Times are in seconds. After a signal the processes have --timeout to
save, a second signal ends them at once. When some have come to their end, those that print nothing for
--timeout hang and are killed. While all train, they find a hang by themselves, by JAX's heartbeat and by the
script's --patience.
"""

import argparse
import contextlib
import ctypes
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import BinaryIO, NamedTuple

# After a death the rest has this long to fail by itself and say why, then this long to end.
SETTLE = 0.5
GRACE = 5.0
# What a process ends with that was interrupted before it had anything to save.
INTERRUPTED = 130
# Of seconds and of restarts, and more than anybody waits for.
MOST = 10**9
# Restarts are one launch, in which `--no-resume` starts anew once.
LAUNCH = "HARDMINE_LAUNCH"
# Where a job is queued again, its number is the launch's, which the scripts know themselves.
SCHEDULED = ("SKYPILOT_TASK_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "AWS_BATCH_JOB_ID",
             "KUBERNETES_SERVICE_HOST")  # fmt: skip
_printing = threading.Lock()


class Worker(NamedTuple):
    """One process of the job, the threads that pass its output on, and when it was last heard, in a list."""

    number: int
    process: subprocess.Popen
    readers: list[threading.Thread]
    heard: list[float]


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own flags, and the script with its flags."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python launch/local.py --processes N [--devices N] [--retries N] [--steady S] [--timeout S] "
        "-- SCRIPT ...",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices", type=int, default=1, help="simulated CPU devices of each")
    parser.add_argument("--retries", type=int, default=3, help="restarts at most, in a row")
    parser.add_argument("--steady", type=float, default=3600.0, help="seconds; see above")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds; see above")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    flags, command = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    if not command:
        parser.error("no script: give it after `--`, as in `-- experiments/pose_ohkm.py --steps 100`")
    if not pathlib.Path(command[0]).is_file():
        parser.error(f"no script at {command[0]}")
    limits = {"processes": (1, 4096), "devices": (1, 4096), "retries": (0, MOST), "steady": (0, MOST),
              "timeout": (0, MOST)}  # fmt: skip
    for name, (least, most) in limits.items():
        value = getattr(flags, name)
        # Of a nan neither is true.
        if not least <= value <= most:
            wanted = f"at least {least}" if value < least else f"a number from {least} to {most}"
            parser.error(f"--{name} {value} must be {wanted}")
    return flags, command


def name_launch() -> None:
    """Gives this launch a name, for all its restarts, where it has none."""
    typed = sys.stdin is not None and sys.stdin.isatty()
    if not os.environ.get(LAUNCH) and (typed or not any(map(os.environ.get, SCHEDULED))):
        os.environ[LAUNCH] = f"local-{uuid.uuid4()}"


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """This process's environment, with so many simulated devices and output that comes at once."""
    count = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{count}=\S*", "", os.environ.get("XLA_FLAGS", ""))
    # Simulated devices are CPU devices; several processes cannot share one accelerator anyway.
    cpu = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{others} {count}={devices}".strip()}
    return {**os.environ, **cpu, "PYTHONUNBUFFERED": "1"}


def log(text: str) -> None:
    """One line of the launcher's own, on stderr."""
    write(f"launch: {text}\n".encode(), sys.stderr.fileno())


def write(line: bytes, target: int) -> None:
    # A closed terminal or `| head` must not stop the training: its output is then read and dropped.
    with _printing, contextlib.suppress(OSError):
        os.write(target, line)


def pass_on(number: int, source: BinaryIO, target: int, heard: list[float]) -> None:
    """Copies lines, prefixed by the process's number; whole lines only, so that processes do not mix."""
    with source:
        for line in source:
            heard[0] = time.monotonic()
            write(b"[%d] %s\n" % (number, line.removesuffix(b"\n")), target)


def _end_with_parent() -> None:
    # Were the launcher itself killed, its processes would train on beside those of the next start.
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def start(command: list[str], processes: int, devices: int) -> list[Worker]:
    """All processes of the job, each the leader of a process group of its own."""
    port = free_port()
    shared = ["--distributed", "--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
    workers = []
    for number in range(processes):
        process = subprocess.Popen(
            [sys.executable, *command, *shared, "--process-id", str(number)], env=environment(devices),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=_end_with_parent,
        )  # fmt: skip
        workers.append(Worker(number, process, [], [time.monotonic()]))
    # Threads start after the last fork: a lock that one of them holds would stay locked in the child.
    for worker in workers:
        for source, target in ((worker.process.stdout, sys.stdout), (worker.process.stderr, sys.stderr)):
            arguments = (worker.number, source, target.fileno(), worker.heard)
            worker.readers.append(threading.Thread(target=pass_on, args=arguments, daemon=True))
            worker.readers[-1].start()
    return workers


def running(workers: list[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.process.poll() is None]


def send(workers: list[Worker], number: int) -> None:
    """A signal to every process that runs. Only to the process itself: its helpers end with it."""
    for worker in running(workers):
        worker.process.send_signal(number)


def kill_groups(workers: list[Worker]) -> None:
    """The processes and whatever they started, at once."""
    for worker in workers:
        try:
            os.killpg(worker.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def first_failed(workers: list[Worker]) -> Worker | None:
    """One that ended otherwise than with 0; of several at once a killed one, or a crashed one before a 2."""

    def rank(worker: Worker) -> tuple[bool, bool]:
        return worker.process.returncode == 2, worker.process.returncode > 0

    return min((w for w in workers if w.process.poll() not in (None, 0)), key=rank, default=None)


def fate(worker: Worker) -> str:
    code = worker.process.returncode
    if code >= 0:
        return f"process {worker.number} ended with exit code {code}"
    why = {-signal.SIGKILL: " (as when memory runs out)", -signal.SIGABRT: " (as when it missed another one)"}
    return f"process {worker.number} was killed by {signal.Signals(-code).name}{why.get(code, '')}"


def hanging(alive: list[Worker], ended: float, timeout: float) -> list[Worker]:
    """Those that said nothing for `timeout` although another had come to its end, the last one at `ended`."""
    now = time.monotonic()
    return [worker for worker in alive if now - max(worker.heard[0], ended) > timeout]


def end_others(workers: list[Worker], first: Worker, timeout: float) -> float:
    """Asks the rest to end, in words and by signal; returns when that must have happened."""
    time.sleep(SETTLE)
    for reader in first.readers:
        reader.join(SETTLE)
    rest = running(workers)
    names = ", ".join(str(worker.number) for worker in rest)
    log(fate(first) + (f": ending process {names}" if rest else ""))
    send(rest, signal.SIGTERM)
    return time.monotonic() + min(GRACE, timeout)


def kill_hanging(workers: list[Worker]) -> None:
    for worker in workers:
        log(f"process {worker.number} hangs: killed")
        kill_groups([worker])
        worker.process.wait()


def watch(workers: list[Worker], received: list[int], timeout: float) -> int:
    """Waits for all processes; see the module's docstring for what ends them.

    Args:
      received: signals to the launcher, appended to by their handler.

    Returns:
      The exit code of the process that failed first, as `Popen.returncode`; 0 when none did.
    """
    first, passed, count, ended, kill_at = None, 0, len(workers), math.inf, math.inf
    while alive := running(workers):
        if len(alive) < count:
            count, ended = len(alive), time.monotonic()
        if first is None and (first := first_failed(workers)):
            kill_at = min(kill_at, end_others(workers, first, timeout))
        if len(received) > passed:
            # The second signal means now; but a terminal that is closed sends SIGHUP more than once.
            if passed == 0 or received[passed] != signal.SIGHUP:
                kill_at = time.monotonic() + timeout if passed == 0 else 0.0
                send(alive, received[passed])
            passed += 1
        late = time.monotonic() > kill_at
        kill_hanging(running(workers) if late else hanging(running(workers), ended, timeout))
        time.sleep(0.05)
    if first is None and (first := first_failed(workers)):
        log(fate(first))
    return first.process.returncode if first else 0


def run_once(command: list[str], flags: argparse.Namespace, received: list[int]) -> int:
    """One start of the job, to its end; nothing of it is left running."""
    workers = start(command, flags.processes, flags.devices)
    try:
        return watch(workers, received, flags.timeout)
    finally:
        kill_groups(workers)
        for worker in workers:
            worker.process.wait()
            for reader in worker.readers:
                reader.join()


def main(arguments: list[str] | None = None) -> int:
    flags, command = parse(sys.argv[1:] if arguments is None else arguments)
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # nohup has SIGHUP ignored.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: received.append(number))
    name_launch()
    restart = 0
    while True:
        started = time.monotonic()
        code = run_once(command, flags, received)
        if code in (0, 2, INTERRUPTED) or received:
            break
        restart = 1 if time.monotonic() - started > flags.steady else restart + 1
        if restart > flags.retries:
            log(f"gave up after {flags.retries} restarts: run the same command to go on")
            break
        log(f"starting again from the last checkpoint ({restart} of {flags.retries})")
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
