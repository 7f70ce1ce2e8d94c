"""Names of joints, classes and files may be anything: reports escape them, pictures and tables show them."""

import copy
import functools
import io
import re

import numpy as np
import pytest
from rich.console import Console

from hardmine_jax.data.problems import DataError, UnreadableImage, gather
from hardmine_jax.errors import UserError
from hardmine_jax.tasks.charts import montage, png, shorten
from hardmine_jax.tasks.detection import report as detection_report
from hardmine_jax.tasks.exit_codes import run_to_exit_code
from hardmine_jax.tasks.page import Row, details, figures, lead, notes, table, tiles, write_page
from hardmine_jax.tasks.photos import InputError
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import report as pose_report

ROW = {"pck": 0.4, "pck_visible": 0.45, "pck_occluded": 0.2, "count": 900, "unit_rate": 0.25}
CLASS = {"ap": 0.9, "ap_11_point": 0.8, "recall": 0.95, "count": 40}
NAMES = [
    "</script><script>alert(1)</script>", '" onload="alert(1)', "$x$", "$\\frac{$", "a\nb",
    "a\x1b[31mb\x07\0", "\u202egnp.exe", "\u2066x", "\u2028line", "\ud800half", "{0}{title}",
    "[bold]x[/bold]", "&lt;", "y" * 20_000, "_hidden", "می\u200cخواهم", "猫", "%s", "",
]  # fmt: skip
BROKEN = re.compile("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


@pytest.mark.parametrize("kind", [UserError, UnreadableImage, InputError, DataError])
def test_a_line_of_an_error_is_one_that_can_be_printed(kind, capsys):
    for name in NAMES:
        assert run_to_exit_code(functools.partial(_raise, kind(f"no category {name}"))) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: no category ") and not BROKEN.search(printed)
        assert printed.count("\n") == 1
        assert not BROKEN.search(gather([("image absent", name)], [("odd", name)]).report())


def _raise(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png(pose_pictures.learning_curves([]), dpi=20)


def test_the_page_escapes_every_name_everywhere(tmp_path, picture):
    body = []
    for name in NAMES:
        rows = [Row(name, [0.5, None], 3)]
        body += [
            lead(name), tiles([(name, name, name)]), table([name] * 3, rows, rows[0]),
            notes([name]), *figures([(name, picture)]), details(name, {name: [name]}),
        ]  # fmt: skip
        text = write_page(tmp_path / "page.html", name, body).read_text(encoding="utf-8")
    assert not BROKEN.search(text) and "<script" not in text
    assert "onload=" not in text.replace("&quot; onload=", "")
    assert "\\u202egnp.exe" in text and "می\u200cخواهم" in text and "\\ud800half" in text


@pytest.mark.parametrize("kind", ["pose", "detection"])
def test_reports_and_tables_of_strange_names(tmp_path, kind):
    named = {name: ROW if kind == "pose" else CLASS for name in NAMES}
    base = {"steps": 3, "images": 4, "pck": 0.4, "map": 0.5}
    result = base | {"per_joint" if kind == "pose" else "per_class": named}
    module = pose_report if kind == "pose" else detection_report
    text = module.write_report(tmp_path / "r.html", title="x", config={}, result=result).read_text("utf-8")
    assert not BROKEN.search(text) and "<script" not in text
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8")
    Console(file=shown, width=200).print(module.result_table(copy.deepcopy(result)))
    shown.flush()


def test_pictures_draw_strange_names():
    names = [name for name in NAMES if name != "猫"]  # A letter that the font lacks is a warning, and a box.
    names = [name for name in names if "می" not in name]
    png(pose_pictures.per_joint_bars({name: ROW for name in names}), dpi=20)
    lines = [{"step": step, "unit_rate": [0.5] * len(names)} for step in (1, 2)]
    png(pose_pictures.mined_over_training(lines, names), dpi=20)
    tile = np.zeros((20, 20, 3), np.uint8)
    figure = montage([tile] * len(names), captions=[shorten(name) for name in names])
    assert len(png(figure, dpi=20)) > 100
