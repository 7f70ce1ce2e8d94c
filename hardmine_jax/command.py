"""The command `hardmine`: from the words on the command line to the `main` that they name.

    hardmine pose train|predict|export|evaluate
    hardmine detection train|predict|evaluate
    hardmine compare

Exit codes: 0 done, or stopped by a signal after saving; 1 a restart may help, or a bug with its traceback; 2
the user's to mend, after one line; 130 interrupted before anything was there to save. Help, the version and
typing errors import nothing but Python's own modules: jax comes with the subcommand that needs it.
"""

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import hardmine_jax
from hardmine_jax.job.interrupts import listening
from hardmine_jax.job.output import lasting_output


class Leaf(NamedTuple):
    """A subcommand: the module whose `main(arguments, prog=...)` it is, and what it does."""

    module: str
    summary: str


Words = tuple[str, ...]

COMMANDS: Mapping[Words, Leaf] = {
    ("pose", "train"): Leaf("pose.train", "train a keypoint network on hard keypoints (OHKM), and report"),
    ("pose", "predict"): Leaf("pose.predict_photos", "keypoints on your own pictures"),
    ("pose", "export"): Leaf("pose.export", "a trained network as one file that jax and numpy run alone"),
    ("pose", "evaluate"): Leaf("pose.evaluate", "score a trained run, on its own data or on other"),
    ("detection", "train"): Leaf("detection.train", "train a detector on hard regions (OHEM), and report"),
    ("detection", "predict"): Leaf("detection.predict_photos", "boxes on your own pictures"),
    ("detection", "evaluate"): Leaf("detection.evaluate", "score a trained run, on its own data or on other"),
    ("compare",): Leaf("compare", "finished runs in one table, with mean and deviation over seeds"),
}
GROUPS: Mapping[str, str] = {
    "pose": "keypoints of people, mice, hands ...",
    "detection": "objects in boxes",
}
_HELP = ("-h", "--help")
_EXTRA = 'pip install "hardmine-jax[train]"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand that the arguments name; by default those of the process.

    Returns:
      The exit code; see above.
    """
    with own_process(arguments):
        return _dispatch(sys.argv[1:] if arguments is None else list(arguments))


def script(module: str, description: str | None = None) -> Callable[..., int]:
    """The `main(arguments=None)` of a script that is a subcommand under another name.

    Args:
      module: in `hardmine_jax.tasks`; imported when it is called.
      description: what --help begins with; None for a module that takes none.
    """
    given = {} if description is None else {"description": description}

    def main(arguments: Sequence[str] | None = None) -> int:
        with own_process(arguments):
            return _load(module)(arguments, **given)

    return main


@contextlib.contextmanager
def own_process(arguments: Sequence[str] | None) -> Iterator[None]:
    """Within it Ctrl-C ends the process in one line, and output that nobody reads any more is no error.

    Args:
      arguments: None for those of the process; where others are given it is somebody else's process.
    """
    with contextlib.ExitStack() as process:
        if arguments is None:
            process.enter_context(listening())
            process.enter_context(lasting_output())
        yield


def _dispatch(arguments: list[str]) -> int:
    words = leading_words(arguments)
    if words in COMMANDS:
        return _run(words, arguments[len(words) :])
    rest = arguments[len(words) :]
    if rest and rest[0] in _HELP:
        print(usage(words))
        return 0
    if not words and rest and rest[0] in ("-V", "--version"):
        print(f"hardmine {hardmine_jax.__version__}")
        return 0
    if not rest:
        print(usage(words), file=sys.stderr)
        return 2
    print(f"error: {complain(words, rest[0])}", file=sys.stderr)
    return 2


def leading_words(arguments: Sequence[str]) -> Words:
    """The arguments that lead to a command or a group of commands.

    >>> leading_words(["pose", "train", "--k", "4"]), leading_words(["pose", "trian"]), leading_words([])
    (('pose', 'train'), ('pose',), ())
    """
    words: Words = ()
    for word in arguments:
        if not _below((*words, word)):
            break
        words = (*words, word)
    return words


def usage(words: Words = ()) -> str:
    """What `--help` prints, of all commands or of those of a group."""
    found = _below(words)
    width = max(len(" ".join(each)) for each in found)
    name = " ".join(("hardmine", *words))
    about = GROUPS[words[0]] if words else "Hard example mining for JAX: two applications that train with it."
    lines = [f"usage: {name} COMMAND [flags]", "", about, "", "commands:"]
    lines += [f"  hardmine {' '.join(each):{width}}  {COMMANDS[each].summary}" for each in found]
    lines += ["", f"{name} COMMAND --help lists the flags of a command."]
    if not words:
        lines.append("hardmine --version prints the version.")
    return "\n".join(lines)


def complain(words: Words, given: str) -> str:
    """One line about a word that is no command: with the nearest ones, or all.

    >>> complain((), "poze")
    "no command 'hardmine poze': did you mean hardmine pose? See hardmine --help"
    >>> complain(("pose",), "trian")
    "no command 'hardmine pose trian': did you mean hardmine pose train? See hardmine pose --help"
    >>> complain((), "export")
    "no command 'hardmine export': did you mean hardmine pose export? See hardmine --help"
    """
    path = " ".join(("hardmine", *words))
    choices = {each[len(words)]: each[: len(words) + 1] for each in _below(words)}
    near = [choices[name] for name in difflib.get_close_matches(given, choices, n=1)]
    if not near:
        # The task left out, or another one's command.
        lasts = difflib.get_close_matches(given, sorted({each[-1] for each in COMMANDS}), n=1)
        near = [each for each in COMMANDS if each[-1] in lasts]
    meant = " or ".join(" ".join(("hardmine", *each)) for each in near)
    advice = f"did you mean {meant}?" if near else f"choose among {', '.join(choices)}."
    # Whatever was typed stays on this one line.
    shown = given if given.isprintable() else ascii(given)[1:-1]
    return f"no command '{path} {shown}': {advice} See {path} --help"


def _below(words: Words) -> list[Words]:
    return [each for each in COMMANDS if each[: len(words)] == words]


def _run(words: Words, arguments: Sequence[str]) -> int:
    prog = " ".join(("hardmine", *words))
    try:
        leaf_main = _load(COMMANDS[words].module)
    except ImportError as error:
        if not _is_missing(error):
            raise
        print(f"error: {prog} needs packages that are not installed ({error}): {_EXTRA}", file=sys.stderr)
        return 2
    return leaf_main(arguments, prog=prog)


def _load(module: str) -> Callable[..., int]:
    main: Callable[..., int] = importlib.import_module(f"hardmine_jax.tasks.{module}").main
    return main


def _is_missing(error: ImportError) -> bool:
    """Whether somebody else's package is not there, which `hardmine_jax.models` says in its own words."""
    root = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
    name = root.name if isinstance(root, ModuleNotFoundError) else None
    return name is not None and name.partition(".")[0] != "hardmine_jax"


if __name__ == "__main__":
    sys.exit(main())
