"""The report's page, table and pictures from plain numbers."""

import numpy as np
import pytest

from hardmine_jax.detection import Detections, GroundTruth, average_precision
from hardmine_jax.tasks.detection import pictures as detection_pictures
from hardmine_jax.tasks.detection import report as detection_report
from hardmine_jax.tasks.detection.evaluation import count_mistakes

CLASSES = ("cell", "<plate>", "never seen")
RESULT = {
    "map": 0.75, "map_11_point": 0.7, "coco": {"AP": 0.5, "AP50": 0.75, "AP75": 0.4}, "proposal_recall": 0.9,
    "per_class": {
        "cell": {"ap": 0.9, "ap_11_point": 0.8, "recall": 0.95, "count": 40},
        "<plate>": {"ap": 0.6, "ap_11_point": 0.6, "recall": 0.7, "count": 1200},
        "never seen": {"ap": None, "ap_11_point": None, "recall": None, "count": 0},
    },
    "steps": 900, "images": 87, "images_per_second": 11.5, "peak_memory_mb": 1234.5,
}  # fmt: skip
LINES = [
    {"step": step, "seconds": 1.0, "loss": 2.0 / step, "learning_rate": 0.1, "fraction_kept": 0.1,
     "foreground_share": 0.3, "loss_captured": 0.6, "validation/map": 0.1 * step}
    for step in range(1, 5)
]  # fmt: skip


def _found() -> Detections:
    boxes = np.array([[10, 10, 30, 30], [50, 20, 70, 60], [0, 0, 5, 5]], np.float32)
    return Detections(boxes, np.array([0.9, 0.8, 0.1], np.float32), np.array([1, 2, 1]))


def _truth() -> GroundTruth:
    boxes = np.array([[11, 10, 31, 30], [80, 80, 95, 95], [50, 20, 70, 60]], np.float32)
    return GroundTruth(boxes, np.array([1, 1, 1]), np.array([False, False, True]))


def test_mistakes_are_misses_and_false_alarms():
    # Found: the first; missed: the second; the third is difficult, and what lies on it is of another class.
    assert count_mistakes(_found(), _truth()) == 2
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert count_mistakes(nothing, _truth()) == 2
    empty = GroundTruth(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    assert count_mistakes(_found(), empty) == 2 and count_mistakes(nothing, empty) == 0


def test_the_report_holds_all_pictures_and_escapes_names(tmp_path):
    image = np.full((100, 120, 3), 90, np.uint8)
    mined = detection_pictures.MinedRois(1, _found().boxes, np.array([0, 1, 2]))
    pictures = detection_pictures.report_pictures(
        LINES, RESULT, CLASSES,
        curves={"cell": (np.array([0.5, 1.0]), np.array([1.0, 0.8])), "<plate>": (np.zeros(1), np.ones(1))},
        mined=[detection_pictures.MinedExample(image, mined, mined._replace(step=900), "a.jpg")],
        typical=[detection_pictures.Example(image, _found(), _truth(), "b.jpg")],
        hardest=[detection_pictures.Example(image, _found(), _truth(), "c.jpg")] * 2,
    )  # fmt: skip
    assert [[len(row) for row in rows] for _, rows in pictures] == [[3], [3], [1], [2], [1], [2]]
    config = {"model": "laptop", "dataset": "voc", "mining": "ohem", "k": 64}
    path = detection_report.write_report(
        tmp_path / "report.html",
        title="Detection",
        config=config,
        result=RESULT,
        pictures=pictures,
        notes=["n"],
    )
    html = path.read_text()
    assert html.count("data:image/png;base64,") == 12 and "&lt;plate&gt;" in html and "<plate>" not in html
    assert "75.0 %" in html and "1,240" in html and "64 hardest regions" in html and "900" in html


def test_a_run_without_anything_to_draw_has_its_curves_only():
    empty = dict(curves={}, mined=[], typical=[], hardest=[])
    assert len(detection_pictures.report_pictures([], RESULT, CLASSES, **empty)) == 1


@pytest.mark.parametrize(
    "mining", ["ohem", "random", "all", "masked", "focal", "hard_negatives", "bootstrap"]
)
def test_every_kind_of_mining_has_its_words(mining):
    words = detection_report.summarise({"mining": mining, "k": 64, "rounds": 4}, RESULT)
    assert "{" not in words and "keeps" not in words and "75.0 %" in words and "87 images" in words


def test_the_table_has_a_dash_where_nothing_is():
    table = detection_report.result_table(RESULT)
    assert table.row_count == 4 and list(table.columns[1].cells) == ["90.0 %", "60.0 %", "–", "75.0 %"]


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((100, 120, 3), np.uint8)
    drawn = detection_pictures.draw_boxes(image, _found().boxes, np.array([1, 0, 2]), CLASSES)
    assert (np.abs(drawn[10, 20].astype(int) - detection_pictures.COLOURS[0]) < 60).all() and drawn[
        20, 60
    ].min() > 150
    assert not image.any() and not drawn[90:].any()
    wild = np.array([[-1e9, -5, 1e9, 200], [np.nan, 0, 5, 5]])
    detection_pictures.draw_boxes(image, wild[:1], np.array([1]), CLASSES, scores=np.array([1.0]))


def test_a_class_has_one_colour_in_boxes_and_curves():
    # By frequency <plate> comes first; the colour goes by the label.
    curves = {"cell": (np.array([1.0]), np.ones(1)), "<plate>": (np.array([1.0]), np.ones(1))}
    figure = detection_pictures.precision_recall(curves, RESULT["per_class"], CLASSES)
    drawn = {line.get_label().split(" ")[0]: line.get_color() for line in figure.axes[0].lines}
    image = np.zeros((60, 60, 3), np.uint8)
    for label, name in enumerate(CLASSES[:2], start=1):
        boxed = detection_pictures.draw_boxes(image, np.array([[10, 10, 50, 50]]), np.array([label]), CLASSES)
        np.testing.assert_allclose(np.array(drawn[name]) * 255, detection_pictures.COLOURS[label - 1])
        # Its edge is smoothed into the dark line around it.
        assert np.abs(boxed[10, 30] - np.array(detection_pictures.COLOURS[label - 1])).max() < 30


def test_classes_beyond_the_eighth_differ_in_their_lines_and_none_is_white(monkeypatch):
    monkeypatch.setattr(detection_pictures, "panels", lambda figure: [])
    names = [f"class {number}" for number in range(30)]
    curves = {name: (np.array([1.0]), np.ones(1)) for name in names}
    rows = {name: {"ap": 1.0, "count": 50} for name in names}
    lines = detection_pictures.precision_recall(curves, rows, names).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 20
    assert min(np.linalg.norm(np.array(colour) - 255) for colour in detection_pictures.COLOURS) > 100
    drawn = detection_pictures.report_pictures(
        [], {"per_class": rows}, names, curves=curves, mined=[], typical=[], hardest=[]
    )
    assert "the 20 most frequent classes" in drawn[-1][0]


@pytest.mark.parametrize("seed", range(5))
def test_the_area_below_a_curve_is_the_average_precision_that_is_written_at_it(seed):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 50, (30, 2))
    boxes = np.concatenate([boxes, boxes + 20], axis=1)
    noisy = boxes + rng.normal(0, 4, boxes.shape)
    measured = average_precision(
        [Detections(noisy, rng.random(30), rng.integers(1, 3, 30))],
        [GroundTruth(boxes, rng.integers(1, 3, 30), np.zeros(30, bool))],
        classes=("a", "b"),
    )
    for row in measured.classes:
        recalls, precisions = detection_pictures.envelope(row.recall, row.precision)
        np.testing.assert_allclose(np.trapezoid(precisions, recalls), row.ap, rtol=1e-12)
