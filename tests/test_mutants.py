"""The mutation tester, and (slow) a sample of mutants: a test notices each, or the record says why not."""

import ast
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
PER_FILE = 2
SOURCE = '''
"""A docstring: 1 < 2."""
Row = Callable[[int], bool]

@overload
def f(a: tuple[1]) -> None: ...
def f(a: tuple[1], *, k: int = 1, where=None) -> tuple[1]:
    if not k > 0:
        raise ValueError(f"k={k + 1} < 1")
    both = jnp.where(where, -a, a[..., -1])
    rest = g("a", jnp.maximum(a, 2.0), where=where).sum(axis=0)
    return rest & True if k else both
'''
EXPECTED = """
def f(a: tuple[1], *, k: int = 0, where=None) -> tuple[1]:
def f(a: tuple[1], *, k: int = 2, where=None) -> tuple[1]:
if (k > 0):
if not k >= 0:
if not k <= 0:
if not k > 1:
both = (-a)
both = a[..., -1]
both = jnp.where(where, a, a[..., -1])
both = jnp.where(where, -a, a[..., 0])
both = jnp.where(where, -a, a[..., -2])
rest = g('a', jnp.maximum(a, 2.0)).sum(axis=0)
rest = g("a", a, where=where).sum(axis=0)
rest = g("a", jnp.minimum(a, 2.0), where=where).sum(axis=0)
rest = g("a", jnp.maximum(a, 3.0), where=where).sum(axis=0)
rest = g("a", jnp.maximum(a, 2.0), where=where).sum(axis=(-1))
rest = g('a', jnp.maximum(a, 2.0), where=where)
rest = jnp.maximum(a, 2.0).sum(axis=0)
return (rest & True)
return both
return rest | True if k else both
return rest & False if k else both
"""


@pytest.fixture(scope="module")
def mutations():
    spec = importlib.util.spec_from_file_location("mutations", TESTS / "mutations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_changed_and_that_messages_and_types_are_not(mutations):
    _, mutants = mutations.mutants_of("x.py", SOURCE)
    assert sorted(mutant.became for mutant in mutants) == sorted(EXPECTED.strip().splitlines())


def test_what_runs_is_the_text_that_the_record_shows(mutations):
    for place in range(len(mutations.mutants_of("x.py", SOURCE)[1])):
        tree, mutants = mutations.mutants_of("x.py", SOURCE)
        mutant = mutants[place]
        lines = SOURCE.splitlines()
        line = lines[mutant.number - 1]
        assert line.strip() == mutant.line
        lines[mutant.number - 1] = line.replace(mutant.line, mutant.became)
        changed = mutations.mutated(tree, mutant)
        assert ast.unparse(changed) == ast.unparse(ast.parse("\n".join(lines)))
        compile(changed, "x.py", "exec")


@pytest.mark.slow
def test_no_mutant_survives_that_is_not_in_the_record(tmp_path):
    """Five minutes. More of them: `python tests/mutate.py --per-file 20`."""
    results = tmp_path / "mutants.jsonl"
    command = [sys.executable, TESTS / "mutate.py", "--per-file", str(PER_FILE), "--results", results]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    outcomes = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(outcomes) > 80 and {item["result"] for item in outcomes} <= {"killed", "survived"}


@pytest.mark.slow
def test_the_record_names_mutants_that_there_are(mutations):
    record = json.loads((TESTS / "mutants.json").read_text())
    for file in {item["file"] for item in record}:
        source = (TESTS.parent / "hardmine_jax" / file).read_text()
        keys = {mutant.key for mutant in mutations.mutants_of(file, source)[1]}
        listed = {(item["file"], item["line"], item["became"]) for item in record if item["file"] == file}
        assert not listed - keys
