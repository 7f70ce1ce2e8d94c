"""The report is one file that needs nothing else, escapes every name, prints what is missing as dashes."""

import base64
import copy
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.charts import png
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import report as pose_report

CONFIG = {
    "model": "hrnet",
    "dataset": "lspet",
    "mining": "ohkm",
    "k": 8,
    "optimizer": {"learning_rate": 1e-3},
}
RESULT = {
    "pck": 0.461,
    "pck@0.2": 0.653,
    "pck_visible": 0.5,
    "pck_occluded": 0.25,
    "mean_pose_pck": 0.062,
    "ap": 0.213,
    "steps": 1200,
    "images_per_second": 52.3,
    "per_joint": {
        "left_hip": {"pck": 0.4, "pck_visible": 0.45, "pck_occluded": 0.2, "count": 900, "unit_rate": 0.25},
        "right_hip": {"pck": 0.6, "pck_visible": 0.65, "pck_occluded": 0.3, "count": 1100, "unit_rate": 0.75},
    },
}


class _Page(HTMLParser):
    """Tags in order, checking that those with an end have one."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png(pose_pictures.per_joint_bars(RESULT["per_joint"]), dpi=40)


def _write(tmp_path, **changes) -> tuple[str, _Page]:
    arguments = {"title": "A run", "config": CONFIG, "result": RESULT} | changes
    text = pose_report.write_report(tmp_path / "report.html", **arguments).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    return text, page


def _printed(result: dict) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(pose_report.result_table(result))
    return console.file.getvalue()


def test_opens_with_what_was_trained_and_how_it_did(tmp_path):
    text, _ = _write(tmp_path)
    first = re.search(r'<p class="lead">(.*?)</p>', text, re.DOTALL).group(1)
    for words in ("hrnet", "lspet", "1,200 steps", "8 hardest joints", "46.1 %", "6.2 %"):
        assert words in first
    assert text.index("lead") < text.index("<table") < text.index("<details")


def test_needs_nothing_outside_itself(tmp_path, picture):
    text, page = _write(tmp_path, pictures=[("Curves", picture)])
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert any(
        "default-src 'none'" in (values.get("content") or "") for tag, values in page.tags if tag == "meta"
    )


def test_pictures_are_embedded_whole_with_their_size_and_alternative_text(tmp_path, picture):
    _, page = _write(tmp_path, pictures=[("Curves", picture), ("Bars", picture)])
    images = [values for tag, values in page.tags if tag == "img"]
    assert [values["alt"] for values in images] == ["Curves", "Bars"]
    assert base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,")) == picture
    assert int(images[0]["width"]) == 288


@pytest.mark.parametrize("in_a_row, narrow", [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_panels_stand_side_by_side_and_half_as_many_where_the_page_is_narrow(
    tmp_path, picture, in_a_row, narrow
):
    text, page = _write(tmp_path, pictures=[("Curves", [[picture] * in_a_row, [picture]])])
    assert sum(tag == "img" for tag, _ in page.tags) == in_a_row + 1
    assert f"--wide: {in_a_row}; --narrow: {narrow}" in text and "var(--narrow)" in text


def test_a_picture_that_is_no_png_is_named(tmp_path):
    with pytest.raises(ValueError, match="'Curves' is not PNG"):
        _write(tmp_path, pictures=[("Curves", b"\xff\xd8\xff\xe0 jpeg")])


def test_every_name_is_escaped(tmp_path, picture):
    evil = '"><script>alert(1)</script>'
    result = copy.deepcopy(RESULT)
    result["per_joint"][evil] = result["per_joint"]["left_hip"]
    config = CONFIG | {"dataset": evil, evil: {evil: evil}}
    _, page = _write(
        tmp_path,
        title=evil,
        config=config,
        result=result,
        pictures=[(evil, picture)],
        notes=[evil],
    )
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(evil) >= 5
    _, page = _write(tmp_path, config=config)
    assert evil in page.text


def test_occlusion_that_a_dataset_does_not_know_is_a_dash(tmp_path):
    result = copy.deepcopy(RESULT) | {"pck_occluded": None, "ap": float("nan"), "mean_pose_pck": None}
    for row in result["per_joint"].values():
        row |= {"pck_occluded": None, "unit_rate": None}
    text, page = _write(tmp_path, result=result)
    for word in ("None", "nan"):
        assert word not in page.text
    table = re.search(r"<tbody>(.*?)</table>", text, re.DOTALL).group(1)
    assert table.count("<td>–</td>") == 6
    printed = _printed(result)
    # A baseline that does not exist has no line.
    assert printed.count("–") == 7 and "mean-pose" not in printed
    assert "None" not in printed and "nan" not in printed


def test_table_has_every_joint_the_totals_and_the_baselines():
    printed = _printed(RESULT)
    for words in (
        "left_hip",
        "right_hip",
        "all joints",
        "46.1 %",
        "50.0 %",
        "25.0 %",
        "0.213",
        "6.2 %",
        "65.3 %",
    ):
        assert words in printed
    total = next(line for line in printed.splitlines() if "all joints" in line)
    assert re.findall(r"[\d.]+ %", total) == ["46.1 %", "50.0 %", "25.0 %", "50.0 %"]


def test_a_joint_name_in_brackets_is_printed_as_it_is():
    result = copy.deepcopy(RESULT)
    result["per_joint"]["[bold]tail[/bold]"] = result["per_joint"]["left_hip"]
    assert "[bold]tail[/bold]" in _printed(result)


def test_labelled_joints_are_summed(tmp_path):
    text, _ = _write(tmp_path)
    assert "<td>2,000</td>" in text


def test_configuration_stands_whole_at_the_end(tmp_path):
    _, page = _write(tmp_path, config=CONFIG | {"workdir": tmp_path})
    assert '"learning_rate": 0.001' in page.text and str(tmp_path) in page.text


@pytest.mark.parametrize(
    ("mining", "words"),
    [
        ("none", "from all joints alike"),
        ("ohkm", "8 hardest joints"),
        ("random", "8 joints of each image drawn at random"),
        ("threshold", "threshold"),
    ],
)
def test_summary_says_how_was_mined(mining, words):
    assert words in pose_report.summarise(CONFIG | {"mining": mining}, RESULT)


def test_summary_says_that_k_falls():
    words = pose_report.summarise(CONFIG | {"k_schedule": "linear"}, RESULT)
    assert "learning from all joints at first, then from the 8 hardest joints of each image" in words
    assert "at first" not in pose_report.summarise(CONFIG | {"k_schedule": "constant"}, RESULT)


def test_notes_are_listed_and_their_heading_stays_away_without_any(tmp_path):
    assert "Notes" not in _write(tmp_path)[1].text
    assert "3 records skipped" in _write(tmp_path, notes=["3 records skipped"])[1].text


def test_facts_stand_below_the_table_and_warnings_above_it(tmp_path):
    facts = [("data", "a<b>.json"), ("category", "mouse")]
    text, page = _write(tmp_path, facts=facts, notes=["only 3 subjects were scored"])
    assert text.index("only 3 subjects") < text.index("<table") < text.index("a&lt;b&gt;.json")
    assert "This run" in page.text and "mouse" in page.text
    assert "This run" not in _write(tmp_path)[1].text


def test_words_fit_animals(tmp_path, picture, monkeypatch):
    """No limbs, people or persons of a mouse."""
    monkeypatch.setattr(pose_pictures, "panels", lambda figure: [[picture]])
    mouse = Skeleton(("snout", "left_ear", "right_ear", "tail"), ((1, 2),), (0.05,) * 4, ((0, 3),))
    points = np.full((4, 2), 20.0)
    example = pose_pictures.Example(
        np.zeros((48, 48, 3), np.uint8), points, points, np.full(4, 2), np.ones(4, bool), "a.jpg"
    )
    result = RESULT | {"per_joint": {name: RESULT["per_joint"]["left_hip"] for name in mouse.names}}
    pictures = pose_pictures.report_pictures([], result, mouse, [example], [example])
    _, page = _write(tmp_path, result=result, pictures=pictures, config={"model": "laptop", "mining": "none"})
    words = page.text.lower() + " ".join(caption for caption, _ in pictures)
    for word in ("limb", "people", "person", "everybody"):
        assert word not in words
    assert "left side orange, the right blue, what is between yellow" in words


def test_a_skeleton_without_sides_has_none_in_its_captions(monkeypatch):
    monkeypatch.setattr(pose_pictures, "panels", lambda figure: [])
    fish = Skeleton(("head", "tail"), (), (0.05,) * 2, ((0, 1),))
    example = pose_pictures.Example(
        np.zeros((48, 48, 3), np.uint8),
        np.ones((2, 2)),
        np.ones((2, 2)),
        np.full(2, 2),
        np.ones(2, bool),
        "a",
    )
    captions = [
        caption for caption, _ in pose_pictures.report_pictures([], RESULT, fish, [example], [example])
    ]
    assert not [caption for caption in captions if "left" in caption or "orange" in caption]
