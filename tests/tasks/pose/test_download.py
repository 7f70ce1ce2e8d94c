"""COCO 2017 is not fetched before somebody has said so: by a flag, or at a terminal."""

import io
import sys

import pytest

from hardmine_jax.data import coco_download
from hardmine_jax.data.pose import coco
from hardmine_jax.errors import UserError
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import datasets, train
from hardmine_jax.tasks.pose.config import Config
from hardmine_jax.tasks.pose.evaluate import EvaluateConfig, find_data


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fetched(monkeypatch):
    """Where it would have been downloaded to, call by call."""
    calls = []
    monkeypatch.setattr(
        coco_download, "download", lambda cache_dir=None, **_: calls.append(cache_dir) or "there"
    )
    monkeypatch.setattr(coco, "load", lambda *_, **named: named["name"])
    return calls


@pytest.mark.parametrize("arguments", [("--dataset", "coco"), ("--preset", "hrnet_w32")])
def test_without_a_terminal_one_line_says_how_much_and_which_flag(arguments, fetched, tmp_path, capsys):
    given = [*arguments, "--cache-dir", str(tmp_path), "--workdir", str(tmp_path / "run")]
    assert train.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and fetched == []
    for word in ("20 GB", "60 GB", str(tmp_path), "--download", "--data-dir", "--annotations"):
        assert word in said


@pytest.mark.parametrize(
    "answer, yes", [("y\n", True), (" Yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_at_a_terminal_it_is_asked(answer, yes, fetched, monkeypatch, tmp_path):
    config = change(Config(dataset="coco"), cache_dir=tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    if yes:
        assert datasets.load_dataset(config) == "coco2017" and fetched == [tmp_path]
    else:
        with pytest.raises(UserError, match="--download"):
            datasets.load_dataset(config)
    assert "20 GB" in sys.stderr.getvalue() and "[y/N]" in sys.stderr.getvalue()
    # The processes of a job are not asked one by one.
    sys.stdin.seek(0)
    with pytest.raises(UserError, match="--download"):
        datasets.load_dataset(change(config, distributed=True))


def test_what_is_there_or_was_asked_for_is_not_asked_again(fetched, tmp_path):
    assert datasets.load_dataset(change(Config(dataset="coco", download=True), cache_dir=tmp_path))
    assert fetched == [tmp_path]
    coco_download.folder_of(tmp_path).mkdir(parents=True)
    assert datasets.load_dataset(change(Config(dataset="coco"), cache_dir=tmp_path))
    assert datasets.load_dataset(Config(dataset="coco", data_dir=tmp_path)) and len(fetched) == 2


def test_the_flag_means_nothing_to_other_data(tmp_path):
    for config in (Config(download=True), Config(dataset="coco", data_dir=tmp_path, download=True)):
        with pytest.raises(UserError, match="--download means nothing"):
            datasets.load_dataset(config)


def test_an_evaluation_asks_too(fetched, tmp_path):
    given = EvaluateConfig(tmp_path, dataset="coco", cache_dir=tmp_path)
    with pytest.raises(UserError, match="--download"):
        find_data(given, change(Config(), workdir=tmp_path))
    given = EvaluateConfig(tmp_path, dataset="coco", cache_dir=tmp_path, download=True)
    found = find_data(given, change(Config(), workdir=tmp_path))
    assert fetched == [tmp_path] and not found.config.download
