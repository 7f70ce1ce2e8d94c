"""Mutation testing: a small change to one line of the pure code, and the tests of that file must notice.

    python tests/mutate.py --per-file 6 --results /tmp/mutants.jsonl

mutates `mining/`, `pose/`, `detection/` and `training/step.py`, in memory: no file is changed. First come a
file's own tests (tests/mining/test_x.py for mining/x.py, and its doctests); what survives them meets the
wider ones that `_WIDER` names. A mutant is killed if a test fails or does not end. What survives is either
in mutants.json, which says why it is no fault (an equivalent), or a test is missing: exit code 1.

Which mutants are tried follows from `--seed` and the text alone; a larger sample holds the smaller one.
Results are appended as lines of JSON and not made again, so a run that was ended goes on; `--again` tries
survivors once more, after a new test. About 3 to 15 s a mutant: JAX is imported once, before the fork of
each, and what a mutant does not change is compiled once, through JAX's persistent cache.
"""

import argparse
import ast
import collections
import contextlib
import hashlib
import importlib.machinery
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import traceback

from mutations import Mutant, mutants_of, mutated

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORD = pathlib.Path(__file__).with_name("mutants.json")
FOLDERS = ("mining", "pose", "detection")
# Of one mutant; the slowest tests of a file take less than a third of it when nothing is compiled yet.
_CPU_LIMIT_S = 300

_ALGEBRA = (
    "emphasis_weights joint_sample kept_indices over_batch prune_weights quota_top_k rank_sample score_table"
    " top_fraction triplets"
).split()
# Helpers without tests of their own, and what sees their faults best.
_OWN = {
    "mining/jaxprs.py": ["mining/test_cpu_products.py", "mining/test_mine.py"],
    "mining/positions.py": ["mining/test_mine.py"],
    "mining/read_only.py": ["mining/test_mine.py"],
    "mining/reuse.py": ["mining/test_mine.py", "mining/test_mine_transformations.py"],
    "mining/unit_axes.py": ["mining/test_mine.py"],
    **{f"mining/{name}.py": ["mining/test_algebra.py"] for name in _ALGEBRA},
    "mining/layout.py": ["test_everywhere.py"],
    "detection/box_runs.py": ["detection/test_roi_pool.py", "detection/test_roi_align.py"],
    "detection/labels.py": ["detection/test_losses.py"],
}
_CONTRACT, _EVERYWHERE = "test_selector_contract.py", "test_everywhere.py"
_TYPES, _WEIGHTS = "mining/test_types.py", "mining/test_weights.py"
_SELECTORS = (
    "global_top_k hard_negatives harder_than_easiest non_max quota_top_k random_k rank_sample threshold"
    " top_fraction top_k"
).split()
# What they do on a mesh.
_EVERYWHERE_TOO = ("importance_weights", "roi_align", "roi_pool")
_WIDER = {f"mining/{name}.py": [_TYPES, _CONTRACT] for name in _SELECTORS} | {
    "mining/fit.py": ["mining/test_mine.py"],
    "mining/focal_weights.py": [_TYPES, _WEIGHTS],
    "mining/ghm_weights.py": [_TYPES, _WEIGHTS],
    "mining/importance_weights.py": [_TYPES, _WEIGHTS],
    "mining/masked_mean.py": [_TYPES, "mining/test_algebra.py"],
    "mining/order.py": ["mining/test_top_k.py", _CONTRACT],
    "mining/positions.py": ["mining/test_mine_transformations.py"],
    "mining/read_only.py": ["mining/test_mine_transformations.py", "mining/test_mine_cost.py"],
    "mining/stats.py": [_TYPES],
    "mining/types.py": [_WEIGHTS, "mining/test_masked_mean.py", "mining/test_top_k.py"],
    "mining/unit_axes.py": ["mining/test_mine_transformations.py"],
    "detection/nms.py": ["detection/test_ohem.py", "detection/test_soft_nms.py"],
    "detection/ohem.py": [_CONTRACT],
    "training/step.py": ["training/test_sharding.py"],
}


def sampled(mutants: list[Mutant], number: int, seed: int) -> list[Mutant]:
    return sorted(mutants, key=lambda m: hashlib.sha256(repr((seed, *m.key)).encode()).digest())[:number]


def stages_of(file: str) -> list[list[str]]:
    """pytest's arguments for the tests that come first, then for those that survivors meet."""
    folder, name = file.split("/")
    stem = name.removesuffix(".py")
    tests = ROOT / "tests" / folder
    mirrored = [*sorted(tests.glob(f"test_{stem}.py")), *sorted(tests.glob(f"test_{stem}_*.py"))]
    own = _OWN.get(file, [f"{folder}/{path.name}" for path in mirrored])
    rows = {_CONTRACT: stem if stem in [*_SELECTORS, "ohem"] else "top_k", _EVERYWHERE: stem}
    names = [
        *_WIDER.get(file, []),
        *([f"{folder}/test_laws.py"] if (tests / "test_laws.py").exists() else []),
    ]
    names += [_EVERYWHERE] if stem in _EVERYWHERE_TOO else []
    wider = [[f"tests/{name}", *(["-k", rows[name]] if name in rows else [])] for name in names]
    return [[f"hardmine_jax/{file}", *(f"tests/{name}" for name in own)], *wider]


class _Tests:
    """How long each test of a file takes and which killed lately; in the child a pytest plugin."""

    def __init__(self) -> None:
        self.killers: list[str] = []
        self._seconds: dict[str, float] = {}
        self._said = pathlib.Path()

    def report_to(self, path: pathlib.Path) -> None:
        self._said = path
        path.touch()

    def pytest_collection_modifyitems(self, items: list) -> None:
        rank = {name: -place for place, name in enumerate(self.killers, start=1)}
        # What takes long comes last. Files have their refusals, which are quick, at their end.
        items.reverse()
        quick = {item.nodeid: 0.0 for item in items if item.nodeid.startswith("hardmine_jax/")}
        seconds = {**self._seconds, **quick}
        items.sort(key=lambda item: (rank.get(item.nodeid, 0), seconds.get(item.nodeid, 0.1)))

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.failed:
            with self._said.open("a") as lines:
                print(json.dumps([report.nodeid, report.duration, report.failed]), file=lines)

    def heard(self) -> str:
        """The test that failed, if one did."""
        by = ""
        for name, seconds, failed in map(json.loads, self._said.read_text().splitlines()):
            self._seconds[name] = seconds
            by = name if failed else by
        if by:
            self.killers = [name for name in self.killers if name != by] + [by]
        return by


def _run_tests(path: pathlib.Path, tree: ast.Module, options: list[str], plugin: _Tests) -> int:
    """In the child: pytest's exit code with `tree` in place of the module at `path`."""
    import hypothesis
    import pytest

    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, name):
        return compile(tree, str(path), "exec") if loader.path == str(path) else original(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code
    # By its own name first: for its doctests pytest would load it once more, and lay the module over the
    # function of that name in the package.
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    # The same examples every time, and no search for the smallest one that fails.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    # What is imported before pytest starts cannot be rewritten by it, and need not be.
    unwritten = "ignore::pytest.PytestAssertRewriteWarning"
    fixed = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", unwritten]
    return pytest.main(fixed + options, plugins=[plugin])


def _child(path: pathlib.Path, tree: ast.Module, options: list[str], plugin: _Tests) -> None:
    code = 2
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT_S, _CPU_LIMIT_S + 5))
        # A machine may be busy, but a mutant that only waits has to end.
        signal.alarm(10 * _CPU_LIMIT_S)
        log = os.open(os.environ.get("MUTATE_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = int(_run_tests(path, tree, options, plugin))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Trial:
    """The mutants of one file under its tests."""

    def __init__(self, file: str):
        self._path = ROOT / "hardmine_jax" / file
        self._tree, self.mutants = mutants_of(file, self._path.read_text())
        self._stages = stages_of(file)
        self._tests = _Tests()

    def __call__(self, mutant: Mutant) -> dict:
        total = 0.0
        for options in self._stages:
            result, by, used = self._forked(mutant, options)
            total += used
            if result != "survived":
                break
        seen = {name: getattr(mutant, name) for name in ("file", "number", "line", "became")}
        return {**seen, "result": result, "by": by, "seconds": round(total, 1)}

    def check(self) -> None:
        """Whatever has killed must pass where nothing is mutated."""
        options = self._tests.killers or [*self._stages[0], "--collect-only"]
        result, by, _ = self._forked(None, options)
        if result != "survived":
            raise SystemExit(f"{by or options} fails without any mutation of {self._path.name}")

    def _forked(self, mutant: Mutant | None, options: list[str]) -> tuple[str, str, float]:
        """(result, the test that says so, seconds of CPU) of the tests in a process of their own."""
        with tempfile.TemporaryDirectory() as folder:
            self._tests.report_to(pathlib.Path(folder) / "said")
            child = os.fork()
            if child == 0:
                _child(self._path, mutated(self._tree, mutant), options, self._tests)
            _, status, used = os.wait4(child, 0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            by = self._tests.heard()
        seconds = used.ru_utime + used.ru_stime
        if os.WIFSIGNALED(status):
            ended = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
            return "killed", "no end" if ended else "a crash", seconds
        result = {0: "survived", 1: "killed", 2: "killed"}.get(os.WEXITSTATUS(status), "error")
        return result, by or ("no import" if result == "killed" else ""), seconds


def files() -> list[str]:
    """All that are mutated."""
    paths = [path for name in FOLDERS for path in sorted((ROOT / "hardmine_jax" / name).glob("[!_]*.py"))]
    return [f"{path.parent.name}/{path.name}" for path in paths] + ["training/step.py"]


def key_of(item: dict) -> tuple[str, str, str]:
    return item["file"], item["line"], item["became"]


def equivalents() -> dict[tuple[str, str, str], str]:
    """The record: (file, line, became) -> why no test can notice, or why none should."""
    return {key_of(item): item["reason"] for item in json.loads(RECORD.read_text())}


def print_score(results: list[dict]) -> list[dict]:
    """By file; returns the survivors that are not in the record."""
    known, table, left = equivalents(), collections.defaultdict(collections.Counter), []
    for item in results:
        same = item["result"] == "survived" and key_of(item) in known
        table[item["file"]]["equivalent" if same else item["result"]] += 1
        left += [item] if item["result"] == "survived" and not same else []
    columns = ("killed", "equivalent", "survived", "error")
    print(f"{'file':34}{'tried':>8}" + "".join(f"{name:>12}" for name in columns))
    for file, counts in [*table.items(), ("all", sum(table.values(), collections.Counter()))]:
        print(f"{file:34}{counts.total():8}" + "".join(f"{counts[name]:12}" for name in columns))
    for item in left:
        print(f"\n{item['file']}:{item['number']}\n  - {item['line']}\n  + {item['became']}")
    return left


def _prepare() -> None:
    """What all children share: modules that start no thread, and a cache of what is compiled."""
    cache = os.path.join(tempfile.gettempdir(), "hardmine_mutants")
    for name, value in (
        ("OPENBLAS_NUM_THREADS", "1"),
        ("JAX_PLATFORMS", "cpu"),
        ("JAX_COMPILATION_CACHE_DIR", cache),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
        ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
    ):
        os.environ.setdefault(name, value)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in ("chex", "faster_coco_eval", "flax.training", "hypothesis", "jax.extend", "optax", "pytest"):
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"{threads} threads before the first fork: something has started JAX's backend")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=files(), help="as mining/top_k.py; all by default")
    parser.add_argument("--per-file", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("mutants.jsonl"))
    parser.add_argument("--again", action="store_true", help="survivors that are not in the record once more")
    args = parser.parse_args()
    _prepare()
    args.results.touch()
    done = {key_of(item): item for item in map(json.loads, args.results.read_text().splitlines())}
    if args.again:
        known = equivalents()
        done = {key: item for key, item in done.items() if key in known or item["result"] == "killed"}
    for file in args.files:
        chosen = sampled(
            mutants_of(file, (ROOT / "hardmine_jax" / file).read_text())[1], args.per_file, args.seed
        )
        left = {mutant.key for mutant in chosen} - set(done)
        trial = Trial(file) if left else None
        for mutant in trial.mutants if trial else []:
            if mutant.key in left:
                done[mutant.key] = trial(mutant)
                with args.results.open("a") as lines:
                    print(json.dumps(done[mutant.key]), file=lines, flush=True)
                print(*done[mutant.key].values(), sep="  ", flush=True)
        if trial:
            trial.check()
    return bool(print_score([item for item in done.values() if item["file"] in args.files]))


if __name__ == "__main__":
    sys.exit(main())
