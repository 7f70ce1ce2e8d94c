"""Pictures of a training: what is drawn where, and what a run without some number leaves out."""

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.charts import montage, panels, png, series
from hardmine_jax.tasks.pose import pictures as pose_pictures

SKELETON = Skeleton(
    ("head", "left_hand", "right_hand", "left_foot", "right_foot"),
    ((1, 2), (3, 4)),
    (0.05,) * 5,
    ((0, 1), (0, 2), (0, 3), (0, 4)),
)
POINTS = np.array([[40.0, 10.0], [60.0, 40.0], [20.0, 40.0], [55.0, 70.0], [25.0, 70.0]])
EVERYWHERE = np.ones(5, dtype=bool)


def _grey(height: int = 80, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def _pixels(picture: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)


def _near(colour, expected) -> bool:
    return bool(np.abs(np.asarray(colour, int) - expected).max() < 30)


def test_left_and_right_joints_have_their_colours():
    drawn = pose_pictures.draw_skeleton(_grey(), POINTS, EVERYWHERE, SKELETON)
    assert _near(drawn[10, 40], pose_pictures.MIDDLE)
    assert _near(drawn[40, 60], pose_pictures.LEFT) and _near(drawn[70, 55], pose_pictures.LEFT)
    assert _near(drawn[40, 20], pose_pictures.RIGHT) and _near(drawn[70, 25], pose_pictures.RIGHT)


def test_drawing_leaves_the_image_alone():
    image = _grey()
    pose_pictures.draw_skeleton(image, POINTS, EVERYWHERE, SKELETON)
    np.testing.assert_array_equal(image, _grey())


def test_a_joint_that_is_not_drawn_takes_its_limbs_with_it():
    drawn = pose_pictures.draw_skeleton(_grey(), POINTS, np.array([True, False, True, True, True]), SKELETON)
    np.testing.assert_array_equal(drawn[25:45, 54:], _grey()[25:45, 54:])


def test_nothing_to_draw_gives_the_image_back():
    drawn = pose_pictures.draw_skeleton(_grey(), np.full((5, 2), np.nan), EVERYWHERE, SKELETON)
    np.testing.assert_array_equal(drawn, _grey())


def test_joints_far_outside_do_not_break_the_drawing():
    points = POINTS.copy()
    points[1], points[2] = (1e12, -1e12), (-500.0, 40.0)
    drawn = pose_pictures.draw_skeleton(_grey(), points, EVERYWHERE, SKELETON)
    assert _near(drawn[70, 55], pose_pictures.LEFT)


def test_occluded_joints_are_hollow():
    large = cv2.resize(_grey(), (400, 400))
    occluded = np.array([False, True, False, False, False])
    drawn = pose_pictures.draw_skeleton(large, POINTS * 5, EVERYWHERE, SKELETON, occluded=occluded)
    assert _near(drawn[200, 300], (255, 255, 255))
    assert _near(drawn[200, 100], pose_pictures.RIGHT)


def test_another_number_of_keypoints_is_named():
    with pytest.raises(ValueError, match=r"\(4, 2\).*needs \(5, 2\)"):
        pose_pictures.draw_skeleton(_grey(), POINTS[:4], EVERYWHERE, SKELETON)


@pytest.mark.parametrize("names", [("right_hip", "left_hip"), ("r_hip", "l_hip"), ("RightHip", "LeftHip")])
def test_side_comes_from_the_name_whatever_the_order_in_the_pair(names):
    skeleton = Skeleton(names, ((0, 1),), (0.1, 0.1), ())
    assert pose_pictures.joint_colours(skeleton) == [pose_pictures.RIGHT, pose_pictures.LEFT]
    mirrored = Skeleton(names[::-1], ((0, 1),), (0.1, 0.1), ())
    assert pose_pictures.joint_colours(mirrored) == [pose_pictures.LEFT, pose_pictures.RIGHT]


def test_series_is_sorted_finite_and_takes_the_later_of_two():
    lines = [{"step": 3, "loss": 1.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": float("nan")}]
    steps, values = series([*lines, {"step": 3, "loss": 2.0}, {"step": 4}], "loss")
    np.testing.assert_array_equal(steps, [1, 3])
    np.testing.assert_array_equal(values, [5.0, 2.0])


def test_learning_curves_draw_every_panel_and_the_baseline():
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 60)]
    figure = pose_pictures.learning_curves([*lines, {"step": 60, "validation/pck": 0.4}], baseline=0.06)
    loss, rate, accuracy = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), 1 / np.arange(1, 60))
    assert len(rate.lines[0].get_xdata()) == 59
    assert accuracy.lines[0].get_ydata() == [0.4]
    assert list(accuracy.lines[1].get_ydata()) == [0.06, 0.06]
    assert _pixels(png(figure)).std() > 1


def test_learning_curves_of_an_empty_run_say_so():
    figure = pose_pictures.learning_curves([])
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["not recorded"] * 3
    png(figure)


def test_the_smoothed_loss_is_not_shifted():
    lines = [{"step": step, "loss": float(step)} for step in range(1, 201)]
    raw, smooth = pose_pictures.learning_curves(lines).axes[0].lines
    assert len(raw.get_xdata()) == 200
    np.testing.assert_allclose(smooth.get_xdata(), smooth.get_ydata(), atol=0.51)


def test_mined_heat_map_averages_over_training_and_keeps_the_joints_apart():
    lines = [{"step": step, "loss": 0.1, "unit_rate": [0.25, 1.0, step / 600]} for step in range(1, 601)]
    axes = pose_pictures.mined_over_training(lines, ["a", "b", "c"]).axes[0]
    table = axes.collections[0].get_array().reshape(3, -1)
    assert table.shape == (3, 60)
    np.testing.assert_allclose(table[0], 25)
    np.testing.assert_allclose(table[1], 100)
    assert (np.diff(table[2]) > 0).all()
    assert axes.get_xlim() == (0, 600)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_mining_curves_show_shares_and_the_number_of_joints():
    lines = [
        {"step": step, "fraction_kept": 8 / 17, "loss_captured": 0.9, "entropy": np.log(step)}
        for step in (1, 4, 16)
    ]
    shares, number = pose_pictures.mining_curves([*lines, {"step": 20}], num_keypoints=17).axes
    drawn = {line.get_label(): line.get_ydata() for line in shares.lines}
    np.testing.assert_allclose(drawn["of the loss"], 0.9)
    np.testing.assert_allclose(drawn["of the labelled joints"], 8 / 17)
    np.testing.assert_allclose(number.lines[0].get_ydata(), [1, 4, 16])
    assert list(number.lines[0].get_xdata()) == [1, 4, 16]
    assert list(number.lines[1].get_ydata()) == [17, 17] and number.get_ylim()[1] > 17


def test_mined_heat_map_of_a_single_line_works():
    png(pose_pictures.mined_over_training([{"step": 5, "unit_rate": [0.5]}], ["a"]))


def test_mined_heat_map_names_what_is_wrong():
    with pytest.raises(ValueError, match="none of 1 metric lines carries 'unit_rate'"):
        pose_pictures.mined_over_training([{"step": 1, "loss": 1.0}], ["a"])
    with pytest.raises(ValueError, match="step 1 has 2 unit rates for 3 joints"):
        pose_pictures.mined_over_training([{"step": 1, "unit_rate": [0.1, 0.2]}], ["a", "b", "c"])


def test_bars_leave_out_what_the_dataset_does_not_know():
    rows = {
        "a": {"pck": 0.5, "pck_visible": 0.6, "pck_occluded": None},
        "b": {"pck": 0.7, "pck_visible": 0.8, "pck_occluded": None},
    }
    figure = pose_pictures.per_joint_bars(rows)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all labelled", "visible"]
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[0].patches], [0.5, 0.7, 0.6, 0.8])
    rows["b"]["pck_occluded"] = 0.2
    assert len(pose_pictures.per_joint_bars(rows).axes[0].patches) == 5


def test_names_are_names_and_not_formulas():
    rows = {"$x_{": {"pck": 0.5}, "<b>": {"pck": 0.1}}
    png(pose_pictures.per_joint_bars(rows))
    png(pose_pictures.mined_over_training([{"step": 1, "unit_rate": [0.5, 0.5]}], list(rows)))
    png(montage([_grey()], captions=["$a_{.jpg"]))


def _example(name: str = "one.jpg") -> pose_pictures.Example:
    predicted = POINTS + np.array([0.0, 20.0]) * (np.arange(5) == 1)[:, None]
    visibility = np.array([2, 2, 1, 2, 0])
    return pose_pictures.Example(
        _grey(), predicted, POINTS, visibility, np.array([1, 0, 1, 1, 0], bool), name
    )


def test_hardest_images_stand_in_pairs_and_count_the_right_joints():
    figure = pose_pictures.hardest_images([_example(), _example("x" * 60), _example()], SKELETON)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["one.jpg: true", "predicted: 3 of 4 right"]
    assert len(titles[2]) < 40
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == 6 and images[0].shape == (400, 400, 3)
    x, y = (POINTS[3] + 0.5) * 5 - 0.5
    assert _near(images[0][round(y), round(x)], pose_pictures.LEFT)
    assert not np.array_equal(images[0], images[1])


def test_montage_needs_an_image_and_a_caption_each():
    with pytest.raises(ValueError, match="0 images"):
        montage([])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        montage([_grey(), _grey()], captions=["a"])
    figure = montage([_grey()] * 5, columns=3)
    assert len(figure.axes) == 5 and all(axes.images for axes in figure.axes)
    assert [len(row) for row in panels(figure)] == [3, 2]


def test_report_pictures_leave_out_what_was_not_recorded():
    rows = {name: {"pck": 0.5} for name in SKELETON.names}
    lines = [{"step": 1, "loss": 1.0}]
    bare = pose_pictures.report_pictures(lines, {"per_joint": rows}, SKELETON, [])
    assert len(bare) == 2
    kept = {"fraction_kept": 0.5, "loss_captured": 0.8, "entropy": 1.5, "unit_rate": [0.5] * 5}
    lines.append({"step": 2, **kept})
    full = pose_pictures.report_pictures(lines, {"per_joint": rows}, SKELETON, [_example()])
    assert len(full) == 5
    assert all(caption for caption, _ in full)
    assert [[len(row) for row in rows] for _, rows in full] == [[3], [2], [1], [1], [2]]
    for _, (row, *_) in full:
        assert sum(_pixels(panel).shape[1] for panel in row) == pytest.approx(
            936 if len(row) == 1 else 1540, abs=8
        )


def test_panels_are_the_figure_cut_where_nothing_is_drawn():
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 1e-7 * step} for step in range(1, 60)]
    (row,) = panels(pose_pictures.learning_curves(lines, baseline=0.06))
    whole = _pixels(png(pose_pictures.learning_curves(lines, baseline=0.06)))
    parts = [_pixels(panel) for panel in row]
    assert sum((part < 255).sum() for part in parts) == (whole < 255).sum()
    for part in parts:
        assert all(edge.min() == 255 for edge in (part[0], part[-1], part[:, 0], part[:, -1]))


@pytest.mark.parametrize("num_joints", [1, 3, 17])
def test_no_letter_is_cut(num_joints):
    """Few joints make a figure low: what stands beside it, along its side, must still be all on it."""
    names = [f"joint_{number}" for number in range(num_joints)]
    lines = [{"step": step, "unit_rate": [0.5] * num_joints} for step in range(1, 40)]
    lines[0] |= {
        "loss": 1.0,
        "fraction_kept": 0.5,
        "loss_captured": 0.7,
        "entropy": 0.1,
        "validation/pck": 0.5,
    }
    row = {"pck": 1.0, "pck_visible": 0.5, "pck_occluded": 0.2}
    figures = [
        pose_pictures.mined_over_training(lines, names),
        pose_pictures.per_joint_bars({name: row for name in names}),
        pose_pictures.mining_curves(lines, num_keypoints=num_joints),
        pose_pictures.learning_curves(lines, baseline=0.1),
    ]
    for figure in figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        for part in (*figure.axes, *figure.legends):
            box = part.get_tightbbox(renderer)
            outside = min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1)
            assert outside > -2, (part.get_label(), outside)
