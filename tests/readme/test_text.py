"""What the READMEs point to is there: links, anchors, paths, commands, flags; the first one stays short."""

import ast
import re

import pytest

from hardmine_jax.tasks.pose.presets import PRESETS
from tests.readme import documents
from tests.readme.documents import PARSERS, PATHS, ROOT, TEXTS, TOP


@pytest.mark.parametrize("path", PATHS)
def test_links_lead_somewhere(path):
    """A file, seen from the README's own folder, and a heading in it."""
    targets = re.findall(r"\]\(([^)\s]+)\)", documents.prose(TEXTS[path]))
    inner = [target for target in targets if not target.startswith("https://")]
    assert inner
    for target in inner:
        name, _, anchor = target.partition("#")
        file = (ROOT / path).parent / name if name else ROOT / path
        assert file.exists(), target
        assert not anchor or anchor in documents.anchors(file.read_text()), target


@pytest.mark.parametrize("path", PATHS)
def test_contents_are_the_sections(path):
    contents = re.findall(r"^- \[(.*)\]\(#(.*)\)$", documents.prose(TEXTS[path]), re.MULTILINE)
    assert [title for title, _ in contents] == list(documents.sections(TEXTS[path]))


def test_every_readme_is_reached_from_the_first():
    for path in PATHS[1:]:
        assert f"]({path})" in TEXTS[TOP]


def test_the_first_readme_is_short():
    assert len(TEXTS[TOP].encode()) <= 11_000


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_the_text_exist(path):
    """Those from the root, and in the text about experiments also the scripts beside it."""
    spans = documents.spans(TEXTS[path])
    from_root = r"(experiments|hardmine_jax|launch|tests|\.ci)/[\w./]*"
    named = {span for span in spans if re.fullmatch(from_root, span)}
    if path == "experiments/README.md":
        scripts = {f"experiments/{span}" for span in spans if re.fullmatch(r"\w+\.py", span)}
        assert len(scripts) == 7
        named |= scripts
    for name in named:
        assert (ROOT / name).exists(), name


COMMANDS = {
    f"{path}: {' '.join([command.name, *command.arguments])}": command
    for path, text in TEXTS.items()
    for command in documents.commands(text)
}


def test_no_command_is_overlooked():
    for text in TEXTS.values():
        lines = "\n".join(documents.shell_lines(text))
        ours = re.findall(r"experiments/[\w/]+\.py|launch/local\.py|hardmine (?:pose|detect|comp)", lines)
        assert len(documents.block_commands(text)) == len(ours)
    assert {command.name for command in COMMANDS.values()} == set(PARSERS)


@pytest.mark.parametrize("place", COMMANDS, ids=lambda place: place[:90])
def test_commands_are_understood(place, monkeypatch):
    command = COMMANDS[place]
    # The launcher looks for the script.
    monkeypatch.chdir(ROOT)
    PARSERS[command.name](list(command.arguments))


def _fields() -> set[str]:
    """The names of all fields of all classes, among them those that tyro makes flags of."""
    sources = [*(ROOT / "experiments").glob("**/*.py"), *(ROOT / "hardmine_jax").glob("**/*.py")]
    return {
        line.target.id
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def test_flags_in_the_text_are_those_of_the_scripts():
    """A flag that a README names between backquotes is one that a script or a launcher has."""
    fields = _fields()
    launchers = (ROOT / "launch/local.py").read_text() + (ROOT / "launch/tpu_vm.sh").read_text()
    spans = [span for text in TEXTS.values() for span in documents.spans(text)]
    ours = " ".join(span for span in spans if not span.startswith("gcloud "))
    found = set(re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", ours))
    assert len(found) > 40
    for flag in found - {"help"}:
        field = flag.rpartition(".")[2].removeprefix("no-").replace("-", "_")
        assert field in fields or re.search(rf'"--{flag}"|--{flag}( \||\))', launchers), flag


def test_the_table_of_published_networks_has_every_preset():
    section = documents.sections(TEXTS["experiments/README.md"])
    section = section["Published networks, weights and test procedures"]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(["laptop", *rows]) == sorted(PRESETS)
