"""gke_jobset.yaml and skypilot.yaml against schemas written by hand, and what both and Slurm's file run.

The schemas hold the fields that we use and their neighbours: JobSet v1alpha2 (jobset_types.go there),
batch/v1 Job and core/v1 Pod, and SkyPilot's task (its YAML reference).
"""

import math
import pathlib
import re
import subprocess

import pytest
import yaml

from hardmine_jax.tasks.detection import train as detection_train
from hardmine_jax.tasks.pose import train as pose_train

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

# A dict: required keys, optional ones with a ?; {str: ...}: any names. A list: of that. A set: one of it.
VALUES = {str: str}
POD = {
    "restartPolicy": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds?": int,
    "nodeSelector": VALUES,
    "serviceAccountName?": str,
    "containers": [
        {
            "name": str,
            "image": str,
            "workingDir?": str,
            "env?": [{"name": str, "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": str}}}],
            "command": [str],
            "ports?": [{"containerPort": int}],
            "resources": {"requests?": {str: int}, "limits": {str: int}},
            "volumeMounts?": [{"name": str, "mountPath": str, "readOnly?": bool}],
        }
    ],
    "volumes?": [
        {
            "name": str,
            "csi?": {"driver": str, "readOnly?": bool, "volumeAttributes?": VALUES},
            "emptyDir?": {"medium?": {"Memory"}, "sizeLimit?": str},
        }
    ],
}
JOB = {
    "completionMode?": {"Indexed"},
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy?": {
        "rules": [
            {
                "action": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes?": {"containerName?": str, "operator": {"In", "NotIn"}, "values": [int]},
                "onPodConditions?": [{"type": str, "status": str}],
            }
        ]
    },
    "template": {"metadata?": {"annotations?": VALUES, "labels?": VALUES}, "spec": POD},
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
           "RestartJobAndIgnoreMaxRestarts"}  # fmt: skip
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str, "annotations?": VALUES, "labels?": VALUES},
    "spec": {
        "failurePolicy?": {
            "maxRestarts?": int,
            "restartStrategy?": {"Recreate", "BlockingRecreate"},
            "rules?": [
                {
                    "name?": str,
                    "action": ACTIONS,
                    "onJobFailureReasons?": [REASONS],
                    "targetReplicatedJobs?": [str],
                }
            ],
        },
        "replicatedJobs": [{"name": str, "replicas?": int, "template": {"spec": JOB}}],
        "ttlSecondsAfterFinished?": int,
    },
}
SKY = {
    "name?": str,
    "workdir?": str,
    "num_nodes?": int,
    "resources": {
        "infra?": str,
        "accelerators": str,
        "accelerator_args?": {"runtime_version?": str},
        "use_spot?": bool,
        "disk_size?": int,
        "job_recovery?": {"max_restarts_on_errors?": int, "recover_on_exit_codes?": [int]},
    },
    "envs?": {str: (str, type(None))},
    "file_mounts?": {str: {"name?": str, "source?": str, "store?": {"gcs", "s3"}, "mode": {"MOUNT", "COPY"}}},
    "setup?": str,
    "run": str,
}


def problems(value, schema, where: str = "") -> list[str]:
    """Where a value does not follow its schema."""
    if isinstance(schema, dict) and set(schema) != {str}:
        if not isinstance(value, dict):
            return [f"{where}: no mapping"]
        known = {name.removesuffix("?"): name for name in schema}
        found = [f"{where}.{name}: unknown" for name in value if name not in known]
        found += [f"{where}.{name}: missing" for name in schema if name in known and name not in value]
        pairs = [(name, part, schema[known[name]]) for name, part in value.items() if name in known]
    elif isinstance(schema, dict):
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            return [f"{where}: no mapping of names"]
        found, pairs = [], [(name, part, schema[str]) for name, part in value.items()]
    elif isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: no list"]
        found, pairs = [], [(str(index), part, schema[0]) for index, part in enumerate(value)]
    elif isinstance(schema, set):
        return [] if value in schema else [f"{where}: {value!r} is none of {schema}"]
    else:
        kinds = schema if isinstance(schema, tuple) else (schema,)
        return [] if type(value) in kinds else [f"{where}: {value!r} is not {schema}"]
    for name, part, one in pairs:
        found += problems(part, one, f"{where}.{name}")
    return found


def load(name: str):
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.mark.parametrize(("name", "schema"), [("gke_jobset.yaml", JOBSET), ("skypilot.yaml", SKY)])
def test_schema(name, schema):
    assert problems(load(name), schema) == []


def test_schema_finds_what_is_wrong():
    wrong = load("gke_jobset.yaml")
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["backoffLimit"] = "0"
    job["paralelism"] = job.pop("parallelism")
    wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"
    assert len(problems(wrong, JOBSET)) == 4


def test_jobset_fits_together():
    spec = load("gke_jobset.yaml")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    # One pod a machine, and the machines are the slice.
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert job["parallelism"] == job["completions"] == chips // limits["google.com/tpu"]
    # podFailurePolicy needs restartPolicy Never; its reason is what the JobSet's rule looks for.
    rule = job["podFailurePolicy"]["rules"][0]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    # What the header's `sed` replaces stands once below it, or the wrong bucket would be written to.
    body = (LAUNCH / "gke_jobset.yaml").read_text().partition("apiVersion")[2]
    assert body.count("MY-BUCKET") == 1


def scripts() -> dict[str, str]:
    """Shell code in the YAML files by where it stands."""
    pod = load("gke_jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    sky = load("skypilot.yaml")
    return {"jobset": pod["containers"][0]["command"][-1], "sky setup": sky["setup"], "sky run": sky["run"]}


@pytest.mark.parametrize("name", ["jobset", "sky setup", "sky run"])
def test_shell_code_parses(name):
    run = subprocess.run(["bash", "-n"], input=scripts()[name], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


COMMAND = re.compile(r"experiments/(pose_ohkm|detection_ohem)\.py((?: +(?!or )[^\s`,;#\"'\]]+)*)")


def experiments() -> dict[str, list[str]]:
    """Every command line of an experiment that a launcher runs or shows, by where it stands."""
    found = {}
    for path in sorted(LAUNCH.glob("*.*")):
        text = re.sub(r" *\\\n *", " ", path.read_text())
        for number, match in enumerate(COMMAND.finditer(text)):
            words = [word for word in match[2].split() if word != "..."]
            found[f"{path.name} {number} {match[1]}"] = words
    return found


def test_every_launcher_is_looked_at():
    assert {key.split()[0] for key in experiments()} == {
        "local.py", "tpu_vm.sh", "slurm.sbatch", "gke_jobset.yaml", "skypilot.yaml", "retry.sh", "README.md",
    }  # fmt: skip


# What the launchers themselves append.
APPENDED = [
    ["--distributed"],
    ["--workdir", "bucket/runs/try", "--distributed"],
    ["--distributed", "--coordinator", "localhost:1234", "--num-processes", "2", "--process-id", "1"],
]


@pytest.mark.parametrize("script, train", [("pose_ohkm", pose_train), ("detection_ohem", detection_train)])
def test_experiments_take_the_flags(script, train):
    commands = {tuple(words) for key, words in experiments().items() if key.split()[-1] == script}
    for words in sorted(commands):
        for appended in [[]] if "--distributed" in words else APPENDED:
            assert train.parse([*words, *appended]).run.distributed
