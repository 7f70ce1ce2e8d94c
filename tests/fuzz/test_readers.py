"""Spoiled files, hundreds of every kind: each is read, counted as skipped, or refused in one line."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEEDED = {".pth": "torch", ".pth before 1.6": "torch", ".safetensors": "safetensors"}
PER_KIND = 25
MOST_MEMORY_MB = 1000


def _kinds(readers) -> list[str]:
    missing = set()
    for package in set(NEEDED.values()):
        try:
            __import__(package)
        except ImportError:
            missing.add(package)
    return [name for name in readers.KINDS if NEEDED.get(name) not in missing]


def _table(found: list[dict]) -> str:
    """Kinds by outcomes, with the slowest input and how far the memory grew."""
    columns = ("read", "skipped", "refused", "FAILED")
    lines = [f"{'kind':28}{'inputs':>8}" + "".join(f"{name:>9}" for name in columns) + "  slowest    memory"]
    kinds = collections.defaultdict(list)
    for outcome in found:
        kinds[outcome["kind"]].append(outcome)
    for kind, members in kinds.items():
        counts = collections.Counter(outcome["result"] for outcome in members)
        cells = "".join(f"{counts[name]:9}" for name in columns)
        grown = max(outcome["peak_mb"] for outcome in members) - members[0]["peak_mb"]
        slowest = max(outcome["seconds"] for outcome in members)
        lines.append(f"{kind:28}{len(members):8}{cells}{slowest:7.2f} s{grown:+7.0f} MB")
    return "\n".join(lines)


def test_a_few_of_every_kind(readers, capfd):
    found = [outcome._asdict() for kind in _kinds(readers) for outcome in readers.outcomes(kind, 0, 4)]
    capfd.readouterr()  # What OpenCV, libpng and libtiff say of broken pictures.
    print(_table(found))
    assert [outcome for outcome in found if outcome["result"] == "FAILED"] == []
    assert {outcome["result"] for outcome in found} == {"read", "skipped", "refused"}


@pytest.mark.slow
def test_hundreds_of_all_kinds(readers, tmp_path, capsys):
    found = []
    for kind in _kinds(readers):
        # A process a kind: one that crashes or hangs is seen, and says where.
        command = [sys.executable, readers.__file__, kind, "0", str(PER_KIND)]
        with open(tmp_path / "errors.txt", "w+b") as errors:
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, timeout=600)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        assert run.returncode == 0, f"{kind}: ended with {run.returncode}: {said[-3000:]}"
        found += map(json.loads, run.stdout.splitlines())
    with capsys.disabled():
        print(f"\n{_table(found)}\n{len(found)} inputs")
    assert [outcome for outcome in found if outcome["result"] == "FAILED"] == []
    assert len(found) == PER_KIND * len(_kinds(readers)) >= 500
    for kind in _kinds(readers):
        peaks = [outcome["peak_mb"] for outcome in found if outcome["kind"] == kind]
        assert max(peaks) - peaks[0] < MOST_MEMORY_MB
