"""In processes of their own: the allocator of the one that runs the tests stays as it is."""

import ctypes
import json
import subprocess
import sys

import jax
import pytest

from hardmine_jax.job import host_memory

# 64 MB in 8 blocks a turn, far above the size from which glibc asks the kernel each time.
SCRIPT = """
import ctypes, json, resource, sys
sys.path[:0] = json.loads(sys.argv[2])
from hardmine_jax.job.host_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def step():
    blocks = [libc.malloc(ctypes.c_size_t(2**23)) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 2**23)
    for block in blocks:
        libc.free(block)

did = keep_freed_memory() if sys.argv[1] == "keep" else None
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({"did": did, "faults": faults}))
"""


def _run(*arguments: str) -> dict:
    command = [sys.executable, "-c", SCRIPT, *arguments, json.dumps(sys.path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator, found on Linux")
def test_a_step_pays_no_page_faults_for_memory_that_the_step_before_freed():
    usual, kept = _run("leave"), _run("keep")
    if not kept["did"]:
        pytest.skip("this C library has no mallopt, or takes none of these settings")
    # Five times 64 MB in pages of 4 KB are 81,920 faults (fewer where the kernel gives huge pages).
    assert usual["faults"] > 100
    assert kept["faults"] < usual["faults"] / 20


@pytest.mark.parametrize("backend, platform", [("gpu", "linux"), ("tpu", "linux"), ("cpu", "darwin")])
def test_elsewhere_it_does_nothing(monkeypatch, backend, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("touched the C library"))
    assert host_memory.keep_freed_memory() is False


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert host_memory.keep_freed_memory() is False


def test_a_setting_that_is_refused_gives_false(monkeypatch):
    class Library:
        asked = []

        def mallopt(self, name, value):
            self.asked.append(name)
            return int(name != -8)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert host_memory.keep_freed_memory() is False
    # The others are made nevertheless.
    assert sorted(Library.asked) == [-8, -4, -2, -1]
