"""launch/local.py with stand-in scripts that need no jax: every way in which a job can end."""

import ast
import importlib.util
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
# Every stand-in knows its `number`, and which `start` of the job this is, from 0.
BEGIN = """
import os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
number, here = int(flags["--process-id"]), pathlib.Path(__file__).parent
start = len(list(here.glob(f"start{number}_*")))
(here / f"start{number}_{start}").write_text(f"{os.getpid()}")
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(body, *flags)`: the job of a stand-in script with that body, started."""
    jobs = []

    def start(body: str, *flags: str, processes: int = 2, script_flags: tuple[str, ...] = ()):
        script = tmp_path / "stand_in.py"
        script.write_text(BEGIN + textwrap.dedent(body))
        command = [sys.executable, str(LAUNCHER), "--processes", str(processes), *flags, "--", str(script)]
        jobs.append(
            subprocess.Popen(
                [*command, *script_flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            job.kill()
        job.communicate()


@pytest.fixture
def launcher():
    """launch/local.py as a module."""
    spec = importlib.util.spec_from_file_location("local", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def end(job: subprocess.Popen, seconds: float = 30.0) -> tuple[int, str, str]:
    started = time.monotonic()
    out, errors = job.communicate(timeout=seconds)
    assert time.monotonic() - started < seconds
    return job.returncode, out, errors


def wait_for(path: pathlib.Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    # A zombie that nobody has waited for yet has ended, too.
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_flags_environment_and_prefixes(launch, tmp_path):
    code, out, errors = end(
        launch(
            """
            assert "--distributed" in sys.argv and flags["--num-processes"] == "3" and flags["--steps"] == "5"
            assert "--xla_force_host_platform_device_count=4" in os.environ["XLA_FLAGS"]
            assert os.environ["JAX_PLATFORMS"] == "cpu"
            (here / f"coordinator{number}").write_text(flags["--coordinator"])
            for line in range(200):
                print("line", number, line)
            print("no newline at the end", end="")
            print("on the other stream", file=sys.stderr)
            """,
            "--devices", "4", processes=3, script_flags=("--steps", "5"),
        )
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3 * 201
    for number in range(3):
        own = [line for line in lines if line.startswith(f"[{number}] ")]
        assert own[:200] == [f"[{number}] line {number} {line}" for line in range(200)]
        assert own[200] == f"[{number}] no newline at the end"
        assert f"[{number}] on the other stream" in errors.splitlines()
    coordinators = {(tmp_path / f"coordinator{number}").read_text() for number in range(3)}
    host, port = coordinators.pop().split(":")
    assert host == "localhost" and 1024 < int(port) < 65536 and not coordinators


def test_device_count_replaces_that_of_the_caller(launch, monkeypatch):
    count = "--xla_force_host_platform_device_count"
    monkeypatch.setenv("XLA_FLAGS", f"{count}=8 --xla_cpu_enable_fast_math=false")
    code, out, _ = end(launch("print(os.environ['XLA_FLAGS'])", "--devices", "2", processes=1))
    assert code == 0
    assert out.split()[1:] == ["--xla_cpu_enable_fast_math=false", f"{count}=2"]


def test_input_error_ends_all_without_a_restart(launch, tmp_path):
    code, _, errors = end(
        launch(
            """
            assert start == 0, "was restarted"
            if number == 1:
                print("error: no such file", file=sys.stderr)
                sys.exit(2)
            time.sleep(60)
            """
        ),
        seconds=15,
    )
    assert code == 2
    assert "[1] error: no such file" in errors
    assert "process 1 ended with exit code 2: ending process 0" in errors
    assert "starting again" not in errors


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)", "raise KeyError(7)"])
def test_death_ends_the_others_and_restarts_the_job(launch, tmp_path, how):
    body = f"""
        (here / f"port{{start}}").write_text(flags["--coordinator"])
        if start == 0 and number == 1:
            {how}
        if start == 0:
            time.sleep(60)
        print("done")
    """
    code, out, errors = end(launch(body, "--retries", "1"), seconds=15)
    assert code == 0
    assert sorted(out.splitlines()) == ["[0] done", "[1] done"]
    fate = "process 1 was killed by SIGKILL" if "SIGKILL" in how else "process 1 ended with exit code 1"
    assert f"launch: {fate}" in errors
    assert "launch: starting again from the last checkpoint (1 of 1)" in errors
    assert "KeyError: 7" in errors or "KeyError" not in how
    # A port that the first start may still hold is not used again.
    assert (tmp_path / "port0").read_text() != (tmp_path / "port1").read_text()


def test_retries_are_bounded(launch, tmp_path):
    job = launch("time.sleep(60) if number else os.kill(os.getpid(), signal.SIGKILL)", "--retries", "2")
    code, _, errors = end(job)
    assert code == 128 + signal.SIGKILL
    assert errors.count("process 0 was killed by SIGKILL") == 3
    assert "gave up after 2 restarts" in errors
    assert sorted(path.name for path in tmp_path.glob("start0_*")) == ["start0_0", "start0_1", "start0_2"]


def test_restarts_are_counted_anew_after_a_steady_start(launch, tmp_path):
    body = """
        if start == 3:
            sys.exit(0)
        time.sleep(3.0 if start == 1 else 0.0)
        sys.exit(1)
    """
    job = launch(body, "--retries", "2", "--steady", "2.5", processes=1)
    code, _, errors = end(job)
    assert code == 0
    counts = [line.split("(")[1] for line in errors.splitlines() if "starting again" in line]
    assert counts == ["1 of 2)", "1 of 2)", "2 of 2)"]


def test_process_that_ignores_the_end_of_another_is_killed_with_its_helpers(launch, tmp_path):
    body = """
        if number == 0:
            while not (here / "helper").exists() or not (here / "helper").read_text():
                time.sleep(0.02)
            sys.exit(3)
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (here / "helper").write_text(str(helper.pid))
        time.sleep(60)
    """
    started = time.monotonic()
    code, _, errors = end(launch(body, "--retries", "0", "--timeout", "2"))
    assert code == 3 and time.monotonic() - started < 15
    assert "process 0 ended with exit code 3: ending process 1" in errors
    assert "process 1 hangs: killed" in errors
    for name in ("start1_0", "helper"):
        assert not alive(int((tmp_path / name).read_text()))


def test_process_that_hangs_after_others_are_done_is_killed_and_the_job_restarted(launch):
    body = """
        if start == 0 and number == 1:
            for line in range(4):
                print("still writing")
                time.sleep(0.5)
            time.sleep(60)
        print("done")
    """
    code, out, errors = end(launch(body, "--timeout", "1.5"), seconds=20)
    assert code == 0
    assert out.count("still writing") == 4 and out.count("[1] done") == 1
    assert "process 1 hangs: killed" in errors and "(1 of 3)" in errors


def test_restarts_are_one_launch_and_another_start_is_another(launch, tmp_path, monkeypatch):
    monkeypatch.delenv("HARDMINE_LAUNCH", raising=False)
    body = """
        with open(here / "launches", "a") as file:
            print(os.environ["HARDMINE_LAUNCH"], file=file)
        sys.exit(start < 2)
    """
    assert end(launch(body, processes=1))[0] == 0
    assert end(launch(body, processes=1))[0] == 0
    first, *restarts, other = (tmp_path / "launches").read_text().split()
    assert restarts == [first, first] and other != first
    # Of a job that is queued again the scheduler's own number counts.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert end(launch('assert "HARDMINE_LAUNCH" not in os.environ', processes=1))[0] == 0
    monkeypatch.setenv("HARDMINE_LAUNCH", "given")
    assert end(launch('assert os.environ["HARDMINE_LAUNCH"] == "given"', processes=1))[0] == 0


def test_what_was_interrupted_is_not_started_again(launch):
    code, _, errors = end(launch("sys.exit(130)", processes=1))
    assert code == 130 and "starting again" not in errors


SAVES = """
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: stopped.append(1))
    (here / f"ready{number}").touch()
    while not stopped:
        time.sleep(0.02)
    time.sleep(1.5 if number else 0.2)
    (here / f"saved{number}").touch()
"""


def test_under_nohup_a_closed_terminal_ends_nothing(launch, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = launch(SAVES, processes=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(tmp_path / "ready0")
    job.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert job.poll() is None and not (tmp_path / "saved0").exists()
    job.terminate()
    assert end(job)[0] == 0


def test_a_closed_terminal_that_says_so_twice_lets_all_save(launch, tmp_path):
    job = launch(SAVES)
    wait_for(tmp_path / "ready0")
    wait_for(tmp_path / "ready1")
    for _ in range(3):
        job.send_signal(signal.SIGHUP)
        time.sleep(0.2)
    assert end(job, seconds=10)[0] == 0
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_reaches_all_and_their_saving_is_waited_for(launch, tmp_path, number):
    job = launch(SAVES)
    wait_for(tmp_path / "ready0")
    wait_for(tmp_path / "ready1")
    job.send_signal(number)
    code, _, errors = end(job, seconds=10)
    assert code == 0, errors
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()
    assert errors == ""


def test_second_signal_or_the_timeout_ends_what_does_not_save(launch, tmp_path):
    body = """
        signal.signal(signal.SIGTERM, lambda *_: (here / f"told{number}").touch())
        (here / f"ready{number}").touch()
        while True:
            time.sleep(0.1)
    """
    job = launch(body, processes=1)
    wait_for(tmp_path / "ready0")
    job.terminate()
    wait_for(tmp_path / "told0")
    job.terminate()
    code, _, errors = end(job, seconds=5)
    assert code == 128 + signal.SIGKILL and "starting again" not in errors
    (tmp_path / "ready0").unlink()
    job = launch(body, "--timeout", "1", processes=1)
    wait_for(tmp_path / "ready0")
    job.terminate()
    code, _, errors = end(job, seconds=5)
    assert code == 128 + signal.SIGKILL and "process 0 hangs: killed" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_killed_launcher_leaves_nothing_that_trains_on(launch, tmp_path):
    job = launch(SAVES)
    wait_for(tmp_path / "ready0")
    wait_for(tmp_path / "ready1")
    job.kill()
    wait_for(tmp_path / "saved0")
    wait_for(tmp_path / "saved1")
    deadline = time.monotonic() + 10
    while any(alive(int((tmp_path / f"start{number}_0").read_text())) for number in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_closed_output_does_not_stop_the_training(launch, tmp_path):
    job = launch(
        """
        while not (here / "closed").exists():
            time.sleep(0.02)
        for line in range(10_000):
            print("x" * 100)
        (here / f"done{number}").touch()
        """
    )
    job.stdout.close()
    job.stdout = None
    (tmp_path / "closed").touch()
    assert end(job)[0] == 0
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "no script"),
        (["--processes", "2", "--", "nowhere.py"], "no script at nowhere.py"),
        (["--processes", "0", "--", __file__], "--processes 0 must be at least 1"),
        (["--processes", "2", "--steady", "-1", "--", __file__], "--steady -1.0 must be at least 0"),
        (["--processes", "2", "--retries", "-1", "--", __file__], "--retries -1 must be at least 0"),
        (["--processes", "two", "--", __file__], "invalid int value"),
        (
            ["--processes", "2", "--timeout", "nan", "--", __file__],
            "--timeout nan must be a number from 0",
        ),
        (["--processes", "2", "--steady", "inf", "--", __file__], "--steady inf must be a number from 0 to"),
        (["--processes", "2", "--timeout", "1e20", "--", __file__], "--timeout 1e+20 must be a number from"),
        (["--processes", "99999", "--", __file__], "--processes 99999 must be a number from 1 to 4096"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(arguments, message):
    run = subprocess.run([sys.executable, str(LAUNCHER), *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert message in run.stderr.splitlines()[-1]


def test_ports_are_free_and_differ(launcher):
    ports = [launcher.free_port() for _ in range(5)]
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("localhost", port))


def test_it_needs_the_standard_library_only():
    tree = ast.parse(LAUNCHER.read_text())
    names = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
