"""The READMEs, cut into what their tests look at: sections, snippets, commands, and code within the text."""

import functools
import importlib
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tyro

ROOT = pathlib.Path(__file__).parents[2]
TOP, RECIPES_OF = "README.md", "hardmine_jax/mining/README.md"
PATHS = (TOP, RECIPES_OF, "experiments/README.md", "experiments/benchmarks/README.md", "launch/README.md")
TEXTS: Mapping[str, str] = {path: (ROOT / path).read_text() for path in PATHS}

Parse = Callable[[list[str]], object]


def _of(module: str) -> Parse:
    """How a module reads its flags: its own `parse`, or its `Config`."""

    def parse(arguments: list[str]) -> object:
        found = importlib.import_module(module)
        if hasattr(found, "parse"):
            return found.parse(arguments)
        return tyro.cli(found.Config, args=arguments)

    return parse


# Who reads the flags of what a README runs.
PARSERS: Mapping[str, Parse] = {
    "hardmine pose train": _of("hardmine_jax.tasks.pose.train"),
    "hardmine pose predict": _of("hardmine_jax.tasks.pose.predict_photos"),
    "hardmine pose export": _of("hardmine_jax.tasks.pose.export"),
    "hardmine pose evaluate": _of("hardmine_jax.tasks.pose.evaluate"),
    "hardmine detection train": _of("hardmine_jax.tasks.detection.train"),
    "hardmine detection predict": _of("hardmine_jax.tasks.detection.predict_photos"),
    "hardmine detection evaluate": _of("hardmine_jax.tasks.detection.evaluate"),
    "hardmine compare": _of("hardmine_jax.tasks.compare"),
    "experiments/pose_ohkm.py": _of("hardmine_jax.tasks.pose.train"),
    "experiments/detection_ohem.py": _of("hardmine_jax.tasks.detection.train"),
    "experiments/compare.py": _of("hardmine_jax.tasks.compare"),
    "experiments/reference_loss.py": _of("experiments.reference_loss"),
    "experiments/studies/ohkm.py": _of("experiments.studies.ohkm"),
    "experiments/benchmarks/detection.py": _of("experiments.benchmarks.detection"),
    "experiments/benchmarks/input_pipeline.py": _of("experiments.benchmarks.input_pipeline"),
    "experiments/benchmarks/mining.py": _of("experiments.benchmarks.mining"),
    "experiments/benchmarks/networks.py": _of("experiments.benchmarks.networks"),
    "experiments/benchmarks/pose_step.py": _of("experiments.benchmarks.pose_step"),
    "experiments/benchmarks/scaling.py": _of("experiments.benchmarks.scaling"),
    "experiments/benchmarks/tpu_compile.py": _of("experiments.benchmarks.tpu_compile"),
    "launch/local.py": _of("launch.local"),
}


def snippets(text: str) -> list[str]:
    """The blocks of Python."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of the second level."""
    return {part.splitlines()[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


def prose(text: str) -> str:
    """All but the blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands between single backquotes, on one line."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\||- )", prose(text)):
        assert paragraph.count("`") % 2 == 0, f"a backquote has no partner: {paragraph}"
        found += re.findall(r"`([^`]+)`", paragraph)
    return [" ".join(span.split()) for span in found]


def anchors(text: str) -> set[str]:
    """What a link may name behind #, as GitHub makes it of each heading."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
        found.add(f"{slug}-{again}" if slug in found else slug)
    return found


class Command(NamedTuple):
    """A command of ours: its name as `PARSERS` has it, or the unknown one, and its arguments."""

    name: str
    arguments: tuple[str, ...]


def commands(text: str) -> list[Command]:
    """Those of the blocks and those in backquotes, where `hardmine` without flags is no more than a name."""
    inline = [command for span in spans(text) for command in _in_line(span)]
    meant = [
        command
        for command in inline
        if command.arguments or command.name not in PARSERS or not command.name.startswith("hardmine")
    ]
    return list(dict.fromkeys([*block_commands(text), *meant]))


def block_commands(text: str) -> list[Command]:
    """All that shell blocks run of ours."""
    return [command for line in shell_lines(text) for command in _in_line(line)]


def shell_lines(text: str) -> list[str]:
    """The lines of shell blocks, a continued one as one."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return "".join(blocks).replace("\\\n", "").splitlines()


def _in_line(line: str) -> list[Command]:
    words = shlex.split(line, comments=True) if _STARTS.match(line) else []
    ends = [place for place, word in enumerate(words) if word in ("&&", "||", "|", ";")] + [len(words)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [found for start, end in zip(starts, ends, strict=True) for found in _in_command(words[start:end])]


# What a line begins with that can run one of ours; other code in the text may be no shell at all.
_STARTS = re.compile(r"(python3?|hardmine|bash|launch/|\.venv/bin/)")


def _in_command(words: Sequence[str]) -> list[Command]:
    """A launcher's command has that of its script within it."""
    found = []
    for place, word in enumerate(words):
        rest = tuple(words[place + 1 :])
        if word.rpartition("/")[2] == "hardmine" and rest:
            length = 1 if f"hardmine {rest[0]}" in PARSERS else 2
            found.append(Command(" ".join(["hardmine", *rest[:length]]), rest[length:]))
        elif re.fullmatch(r"experiments/[\w/]+\.py|launch/local\.py", word):
            found.append(Command(word, rest))
    return found


@functools.cache
def exported_snippet() -> str:
    """The one block of Python that needs files, and not this package."""
    (snippet,) = snippets(sections(TEXTS[TOP])["Without this package"])
    return snippet
