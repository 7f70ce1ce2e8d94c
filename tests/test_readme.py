"""What README.md prints runs as printed, and what it points to is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, capsys):
    names = {}
    exec(compile(SNIPPETS[number], f"README.md snippet {number}", "exec"), names)
    if "print(" in SNIPPETS[number]:
        printed = capsys.readouterr().out
        assert re.fullmatch(r"loss \d+\.\d+, 8 of 19 keypoints kept, gradient \(8, 5\)\n", printed)
    import jax
    import numpy as np

    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(names["gradient"]))


def test_first_snippet_is_short():
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip()]
    assert len(lines) <= 25


def test_links_lead_somewhere():
    paths = re.findall(r"\]\(([^)#:]+)\)", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_flags_are_those_of_the_scripts():
    """A flag that the README names is one that a script has."""
    scripts = ("pose_ohkm.py", "predict_pose.py")
    sources = "".join((ROOT / "experiments" / name).read_text() for name in scripts)
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    commands = "".join(re.findall(r"experiments/\w+\.py(?:.*\\\n)*.*", blocks))
    for flag in set(re.findall(r"--([a-z][a-z-]+)", commands)):
        field = flag.removeprefix("no-").replace("-", "_")
        assert re.search(rf"^    {field}: ", sources, re.MULTILINE), flag
