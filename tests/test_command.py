"""The command `hardmine`: its help, typing errors and exit codes, and how soon it answers."""

import pathlib
import re
import resource
import subprocess
import sys
import tomllib

import pytest

import hardmine_jax
from hardmine_jax import command

ROOT = pathlib.Path(__file__).parents[1]
# Makes some packages as if they were not installed.
_BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from hardmine_jax.command import main
sys.exit(main())
"""
# Of a process that answers from Python's own modules; 0.03 s where nothing else runs.
_SECONDS = 1.0


def _run(*arguments: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", _BLOCK.format(blocked=blocked), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("arguments, code", [
    (["--help"], 0), (["-h"], 0), (["pose", "--help"], 0), (["detection", "--help"], 0), (["--version"], 0),
    (["poze"], 2), (["pose", "trian"], 2), (["pose", "trian", "--help"], 2), ([], 2), (["pose"], 2),
])  # fmt: skip
def test_it_answers_at_once_without_jax(arguments, code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = _run(*arguments, blocked=("jax", "flax", "numpy", "tyro", "rich"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == code, run.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < _SECONDS


def test_help_names_every_command(capsys):
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for words, leaf in command.COMMANDS.items():
        assert f"hardmine {' '.join(words)} " in shown and leaf.summary in shown
    assert command.main(["pose", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "hardmine pose export" in shown and "hardmine detection" not in shown


@pytest.mark.parametrize("arguments, meant", [
    (["poze"], "did you mean hardmine pose?"),
    (["pose", "trian"], "did you mean hardmine pose train?"),
    (["pose", "trian", "--k", "4"], "did you mean hardmine pose train?"),
    (["train"], "did you mean hardmine pose train or hardmine detection train?"),
    (["detection", "export"], "did you mean hardmine pose export?"),
    (["compair", "run"], "did you mean hardmine compare?"),
    (["xyzzy"], "choose among pose, detection, compare."),
    (["--k", "4"], "choose among pose, detection, compare."),
    (["po\nse\u202e"], "did you mean hardmine pose?"),
])  # fmt: skip
def test_a_typing_error_is_one_line_with_the_nearest_command(arguments, meant, capsys):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert meant in captured.err and captured.err.isascii()


@pytest.mark.parametrize("words", command.COMMANDS, ids=" ".join)
def test_every_command_lists_its_flags(words, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([*words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: hardmine {' '.join(words)} ")
    # The examples are of this command, not of a script.
    assert "experiments/" not in shown and ".py" not in shown


def test_a_wrong_flag_is_told_under_the_command_s_name(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["pose", "train", "--preset", "nonsense"])
    assert ended.value.code == 2 and "usage: hardmine pose train" in capsys.readouterr().err


def test_exit_codes_are_those_of_the_tasks(tmp_path, capsys):
    assert command.main(["compare", str(tmp_path)]) == 2
    assert re.match(r"error: no .*config\.json", capsys.readouterr().err)
    assert command.main(["pose", "evaluate", str(tmp_path)]) == 2
    assert "hardmine pose train" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["tyro", "flax"])
def test_without_the_extra_it_says_which_to_install(missing):
    run = _run("pose", "train", blocked=(missing,))
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and not run.stdout
    assert 'pip install "hardmine-jax[train]"' in run.stderr and missing in run.stderr


def test_without_any_extra_help_still_works():
    run = _run("detection", "--help", blocked=("flax", "optax", "orbax", "grain", "cv2", "tyro"))
    assert run.returncode == 0 and "hardmine detection train" in run.stdout


def test_a_module_of_our_own_that_is_missing_is_a_bug(monkeypatch):
    monkeypatch.setitem(command.COMMANDS, ("pose", "nothing"), command.Leaf("pose.nothing", ""))
    with pytest.raises(ModuleNotFoundError, match="hardmine_jax.tasks.pose.nothing"):
        command.main(["pose", "nothing"])


@pytest.mark.parametrize("module", ["hardmine_jax", "hardmine_jax.command"])
@pytest.mark.parametrize("arguments, code", [(["--help"], 0), (["--version"], 0), (["poze"], 2)])
def test_python_m_is_the_command(module, arguments, code, capsys):
    run = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == code == command.main(arguments)
    assert (run.stdout, run.stderr) == capsys.readouterr()
    assert arguments != ["--version"] or run.stdout == f"hardmine {hardmine_jax.__version__}\n"


def test_the_installed_script_is_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["hardmine"].split(":")
    assert module == "hardmine_jax.command" and getattr(command, name) is command.main
