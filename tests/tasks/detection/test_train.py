"""The script from its command line to its files, with a tiny network; mistakes end with 2 and one line."""

import functools
import json
import pathlib
import re
import shutil

import cv2
import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.data.detection import shapes, synthetic
from hardmine_jax.models import fast_rcnn
from hardmine_jax.models.vgg import VGGTrunk
from hardmine_jax.tasks.detection import config as detection_config
from hardmine_jax.tasks.detection import networks
from hardmine_jax.tasks.detection import pictures as detection_pictures
from hardmine_jax.tasks.detection import predict_photos as detection_predict_photos
from hardmine_jax.tasks.detection import train as detection_train
from tests.tasks import guarded


def _tiny_model(name, num_classes, *, axis_name, **_):
    trunk = VGGTrunk(((4,), (4,), (4,)), axis_name=axis_name)
    return fast_rcnn.FastRCNN(num_classes, trunk, hidden=(8, 8), dropout=0.0, pooling="align")


def _shrink(patch: pytest.MonkeyPatch) -> None:
    """A network that compiles in seconds, one device, few images, an allocator that stays as it is."""
    patch.setattr(networks, "make_model", _tiny_model)
    patch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    few = functools.partial(synthetic.load, num_train=12, num_validation=6)
    patch.setattr(synthetic, "load", few)
    parallelise = functools.partial(guarded.parallelise, devices=jax.devices()[:1])
    patch.setattr(training, "parallelise", parallelise)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    _shrink(monkeypatch)
    # Drawing takes longer than all the rest; `trained` has its pictures.
    monkeypatch.setattr(detection_pictures, "report_pictures", lambda *_, **__: [])


def _arguments(workdir: pathlib.Path, *more: object) -> list[str]:
    common = ["--workdir", workdir, "--image-size", 64, 64, "--batch-size", 8, "--log-every", 1, "--k", 8]
    search = ["--search.max-proposals", 40, "--search.scale", 0.5, "--max-detections", 10]
    return [str(argument) for argument in (*common, *search, *more)]


def _result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A run of 4 steps on made-up shapes; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDMINE_CACHE", str(folder / "cache"))
        _shrink(patch)
        arguments = _arguments(folder / "run", "--steps", 4, "--checkpoint-every", 2, "--evaluate-every", 3)
        assert detection_train.main(arguments) == 0
    return folder / "run"


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> pathlib.Path:
    """The trained run in a folder of this test's own, and the cache that it was made with."""
    monkeypatch.setenv("HARDMINE_CACHE", str(trained.parent / "cache"))
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_writes_everything_that_it_promises(trained):
    result = _result(trained)
    assert (result["steps"], result["images"]) == (4, 6) and result["images_per_second"] > 0
    assert result["peak_memory_mb"] > 100 and result["step_memory_mb"] > 0 and result["seconds"] > 0
    assert 0 <= result["map"] <= 1 and 0 <= result["map_11_point"] <= 1 and 0 < result["proposal_recall"] <= 1
    assert {"AP", "AP50", "AP75"} <= set(result["coco"])
    assert tuple(result["per_class"]) == shapes.CLASSES
    for row in result["per_class"].values():
        assert set(row) == {"ap", "ap_11_point", "recall", "count"}
    assert {3, 4} <= set(_steps(trained))
    html = (trained / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 4 and f"{100 * result['map']:.1f} %" in html
    assert json.loads((trained / "config.json").read_text())["config"]["steps"] == 4
    assert sorted(int(path.stem) for path in (trained / "mined").glob("*.npz")) == [1, 3, 4]


def test_every_log_line_has_what_was_mined(trained):
    lines = training.read_metrics(trained / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        names = {"loss", "grad_norm", "fraction_kept", "foreground_share", "loss_captured", "learning_rate"}
        assert names <= set(line)
        assert 0 < line["fraction_kept"] < 1 and line["fraction_kept"] < line["loss_captured"] <= 1
    assert {"validation/map", "validation/map_11_point"} <= set(lines[2])


def test_config_comes_back_as_it_was(trained):
    config, classes = detection_config.load_config(trained)
    assert config.run.workdir == trained and config.image_size == (64, 64) and config.max_boxes >= 1
    assert config.search.max_proposals == 40 and isinstance(config.run.optimizer, training.OptimizerConfig)
    assert classes == shapes.CLASSES


def test_evaluation_alone_gives_the_same_numbers_and_trains_no_further(copied):
    before, config = _result(copied), (copied / "config.json").read_text()
    (copied / "result.json").unlink()
    assert detection_train.main(_arguments(copied, "--eval-only", "--steps", 2)) == 0
    after = _result(copied)
    for name in ("map", "map_11_point", "coco", "per_class", "proposal_recall", "steps"):
        assert after[name] == before[name]
    assert max(_steps(copied)) == 4 and (copied / "config.json").read_text() == config


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(copied, tmp_path, capsys):
    """Four steps and two more against six in one go, made of the same flags."""
    assert detection_train.main(_arguments(tmp_path / "whole", *_constant(6))) == 0
    assert detection_train.main(_arguments(tmp_path / "parts", *_constant(4))) == 0
    assert detection_train.main(_arguments(tmp_path / "parts", *_constant(6))) == 0
    captured = capsys.readouterr()
    assert "resuming from step 4" in captured.out and "steps=4" in captured.err
    weights = [training.load_variables(tmp_path / name, which="latest") for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def _constant(steps: int) -> list[object]:
    """A learning rate that does not follow from the number of steps."""
    return ["--steps", steps, "--optimizer.schedule", "constant", "--optimizer.warmup-steps", 0]


@pytest.mark.slow
def test_bootstrap_goes_in_rounds_and_on_from_within_one(copied, tmp_path, capsys, monkeypatch):
    flags = ["--mining", "bootstrap", "--rounds", 3, "--steps", 6, "--checkpoint-every", 1, "--keep-last", 9]
    assert detection_train.main(_arguments(tmp_path / "whole", *flags)) == 0
    rounds = _result(tmp_path / "whole")["rounds"]
    assert [(one["round"], one["after_step"]) for one in rounds] == [(2, 2), (3, 4)]
    assert all(one["members"] > 0 and one["seconds"] > 0 for one in rounds)
    # Cut off in the middle of the second round: its pool is in the checkpoint.
    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in _steps(parts):
        if step > 3:
            shutil.rmtree(parts / "checkpoints" / str(step))
    assert detection_train.main(_arguments(parts, *flags)) == 0
    assert "resuming from step 3" in capsys.readouterr().out
    weights = [training.load_variables(tmp_path / name, which="latest") for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "focal"])
def test_other_kinds_of_mining_run_to_their_end(copied, kind, capsys):
    assert detection_train.main(_arguments(copied, "--mining", kind, "--steps", 1, "--no-resume")) == 0
    assert _result(copied)["steps"] == 1 and (copied / "checkpoints.previous" / "4").is_dir()
    assert kind in (copied / "report.html").read_text()


def test_predictions_land_in_a_coco_file_and_in_pictures(copied, tmp_path):
    source = synthetic.load().validation
    photos = []
    for index in (0, 1, 2):
        photos.append(tmp_path / f"{index + 5}.jpg")
        photos[-1].write_bytes(source[index]["image"])
    output = tmp_path / "out"
    flags = [*map(str, photos), "--checkpoint", str(copied), "--output", str(output), "--min-score", "0.01"]
    assert detection_predict_photos.main(flags) == 0
    found = json.loads((output / "detections.json").read_text())
    assert {entry["image_id"] for entry in found} == {5, 6, 7}
    for entry in found:
        x, y, width, height = entry["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 160.01 and y + height <= 160.01 and 0 < entry["score"] <= 1
        assert entry["category"] == shapes.CLASSES[entry["category_id"] - 1]
    assert sorted(path.name for path in output.glob("*.png")) == ["5_boxes.png", "6_boxes.png", "7_boxes.png"]


def _renumbered(workdir: pathlib.Path, ids: list) -> None:
    """The run's file had these category ids."""
    path = workdir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "category_ids": ids}))


def test_predictions_carry_the_ids_of_the_file_that_was_trained_on(copied, tmp_path):
    ids = [3, "4", 18, 90, 7, 1]
    photo = tmp_path / "5.jpg"
    photo.write_bytes(synthetic.load().validation[0]["image"])
    flags = [str(photo), "--checkpoint", str(copied), "--output", str(tmp_path), "--max-detections", "7"]
    for given in (ids, None):
        if given:
            _renumbered(copied, given)
        else:
            # As older versions wrote it.
            content = json.loads((copied / "config.json").read_text())
            del content["category_ids"]
            (copied / "config.json").write_text(json.dumps(content))
        assert detection_predict_photos.main(flags) == 0
        found = json.loads((tmp_path / "detections.json").read_text())
        expected = dict(zip(shapes.CLASSES, given or range(1, 7), strict=True))
        assert 1 < len(found) <= 7
        assert all(entry["category_id"] == expected[entry["category"]] for entry in found)


def test_weights_are_taken_over_by_the_names_of_the_classes(copied, tmp_path, capsys):
    """With the run's classes in another order, what each of them had goes to its name."""
    content = json.loads((copied / "config.json").read_text())
    order = [3, 0, 5, 1, 2, 4]
    content["classes"] = [shapes.CLASSES[place] for place in order]
    (copied / "config.json").write_text(json.dumps(content))
    flags = _arguments(tmp_path / "new", "--init-from", copied, "--eval-only")
    assert detection_train.main(flags) == 0
    assert "classes taken over by name: 6 of 6" in capsys.readouterr().err
    old, new = (training.load_variables(folder)["params"] for folder in (copied, tmp_path / "new"))
    for place, name in enumerate(content["classes"]):
        here = shapes.CLASSES.index(name)
        for kind in ("kernel", "bias"):
            one, other = (tree["class_logits"][kind] for tree in (old, new))
            np.testing.assert_array_equal(one[..., place + 1], other[..., here + 1])
            np.testing.assert_array_equal(one[..., 0], other[..., 0])
            one, other = (tree["box_deltas"][kind] for tree in (old, new))
            rows = slice(4 * place, 4 * place + 4), slice(4 * here, 4 * here + 4)
            np.testing.assert_array_equal(one[..., rows[0]], other[..., rows[1]])
    # A head that stays random is not scored.
    content["classes"][0] = "unicorn"
    (copied / "config.json").write_text(json.dumps(content))
    error = _fails(
        capsys, detection_train.main, _arguments(tmp_path / "none", "--init-from", copied, "--eval-only")
    )
    assert "square" in error and "--eval-only" in error


def test_what_the_data_does_not_teach_is_said_at_the_start(copied, tmp_path, monkeypatch):
    dataset = synthetic.load(num_train=60)
    empty = int((dataset.train.targets_per_image == 0).sum())
    assert empty
    for flags, said in (
        (["--mining", "hard_negatives"], f"{empty} of 60 images to train on show no object"),
        (["--mining", "random"], "--background-overlap 0 takes any"),
        (["--mining", "hard_negatives", "--min-negatives", "4"], None),
        (["--mining", "random", "--background-overlap", "0"], None),
        (["--mining", "ohem"], None),
        (["--max-detections", "2"], "an image shows 4 objects, of which --max-detections 2 can be found"),
    ):
        notes = detection_config.notes_on_data(detection_train.parse(flags), dataset)
        assert [said in note for note in notes] == [True] if said else notes == []


# What follows is bad input.


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
@pytest.mark.parametrize("change", ["other", "order", "fewer", "more"])
def test_other_classes_than_the_run_s_are_refused(copied, capsys, flags, change):
    content = json.loads((copied / "config.json").read_text())
    names = content["classes"]
    content["classes"] = {
        "other": ["unicorn", *names[1:]],
        "order": names[::-1],
        "fewer": [*names, "unicorn"],
        "more": names[1:],
    }[change]
    content.pop("category_ids")
    (copied / "config.json").write_text(json.dumps(content))
    before = {path: path.read_bytes() for path in copied.glob("*.*")}
    error = _fails(capsys, detection_train.main, _arguments(copied, "--steps", 5, *flags))
    assert "class" in error and ("unicorn" in error or change in ("order", "more")) and "evaluate" in error
    assert {path: path.read_bytes() for path in copied.glob("*.*")} == before and max(_steps(copied)) == 4


def _fails(capsys, main, arguments: list[str]) -> str:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines].count(True) == 1 and lines[-1].startswith("error: ")
    return lines[-1]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--batch-size", 12], "--batch-size 12"),
        (["--image-size", 40, 32], "--image-size (40, 32)"),
        (["--steps", 0], "--steps 0"),
        (["--k", 0], "--k 0"),
        (["--k", 41], "--search.max-proposals 40"),
        (["--nms", 1.5], "--nms 1.5"),
        (["--test-nms", -1], "--test-nms -1"),
        (["--min-score", 2], "--min-score 2"),
        (["--rounds", 0], "--rounds 0"),
        (["--rounds", 9, "--steps", 5, "--mining", "bootstrap"], "--rounds 9"),
        (["--ema-decay", 1], "--ema-decay 1"),
        (["--max-boxes", 1], "--max-boxes 1"),
        (["--min-negatives", 3], "--min-negatives means nothing to --mining ohem"),
        (["--min-negatives", 41, "--mining", "hard_negatives"], "--min-negatives 41"),
        (["--ratio", 3], "--ratio means nothing to --mining ohem"),
        (["--ratio", -1, "--mining", "hard_negatives"], "--ratio -1"),
        (["--foreground-quota", 3, "--mining", "all"], "--foreground-quota means nothing to --mining all"),
        (["--foreground-quota", 33], "--foreground-quota 33"),
        (["--background-overlap", 0.5, "--mining", "random"], "--background-overlap 0.5"),
        (["--background-overlap", 0, "--mining", "hard_negatives"], "--background-overlap means nothing"),
        (["--voc-corners", "edges"], "--voc-corners means nothing to --dataset synthetic"),
        (["--exif-orientation", "stored"], "--exif-orientation means nothing to --dataset synthetic"),
        (["--seed", 2**32], "--seed 4294967296"),
        (["--init-from", "w.npz"], "--init-from w.npz"),
        (["--images", "d"], "--images"),
        (["--data-dir", "d"], "--data-dir"),
        (["--dataset", "voc"], "voc needs --data-dir DIR with"),
        (
            ["--dataset", "coco", "--annotations", "a"],
            "coco needs --annotations JSON and --images DIR: --images missing",
        ),
    ],
)
def test_flags_that_cannot_be_leave_the_run_as_it_was(copied, capsys, flags, named):
    assert named in _fails(capsys, detection_train.main, _arguments(copied, "--no-resume", *flags))
    assert max(_steps(copied)) == 4 and (copied / "result.json").exists()


def test_data_that_is_not_there(tmp_path, capsys):
    flags = ["--dataset", "voc", "--data-dir", tmp_path / "nowhere"]
    assert str(tmp_path / "nowhere") in _fails(
        capsys, detection_train.main, _arguments(tmp_path / "run", *flags)
    )
    flags = ["--dataset", "coco", "--annotations", tmp_path / "no.json", "--images", tmp_path]
    assert "no.json" in _fails(capsys, detection_train.main, _arguments(tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def _voc_with_flaws(folder: pathlib.Path) -> pathlib.Path:
    """A VOC folder of shapes: four good pictures to train on, two to validate on, and one of each flaw."""
    source = synthetic.load().train
    names = {"train": [f"good{number}" for number in range(4)], "val": ["seen0", "seen1"]}
    flawed = ["flat", "nothing", "blank", "cut", "unannotated"]
    for place, name in enumerate([*names["train"], *names["val"], *flawed]):
        record, objects = source[place], []
        for label, box in zip(record["labels"], record["boxes"], strict=True):
            objects.append((shapes.CLASSES[label - 1], box + [1, 1, 0, 0]))
        objects += {"flat": [("ring", (9, 9, 9, 40))], "seen1": [("unicorn", (20, 20, 60, 60))]}.get(name, [])
        encoded = {"cut": record["image"][:-400], "blank": _blank(20)}.get(name, record["image"])
        _write_voc(folder, name, encoded, [] if name in ("nothing", "blank") else objects)
    (folder / "Annotations" / "unannotated.xml").unlink()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, listed in {"train": names["train"] + flawed, "val": names["val"]}.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed))
    return folder


def _write_voc(folder: pathlib.Path, name: str, encoded: bytes, objects: list) -> None:
    things = []
    for title, box in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        numbers = "".join(f"<{corner}>{float(value)}</{corner}>" for corner, value in corners)
        things.append(f"<object><name>{title}</name><bndbox>{numbers}</bndbox></object>")
    for part, suffix, content in (
        ("JPEGImages", "jpg", encoded),
        ("Annotations", "xml", f"<annotation>{''.join(things)}</annotation>".encode()),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.{suffix}").write_bytes(content)


def _blank(side: int) -> bytes:
    return cv2.imencode(".jpg", np.full((side, side, 3), 128, np.uint8))[1].tobytes()


def test_steps_none_are_the_preset_s():
    default = detection_train.parse(["--steps", "None"])
    assert default == detection_train.parse([]) and default.run.length > 0


@pytest.mark.parametrize("kind", ["ohem", pytest.param("bootstrap", marks=pytest.mark.slow)])
def test_real_flaws_are_counted_and_named_and_none_ends_the_run(copied, tmp_path, capsys, kind):
    folder = _voc_with_flaws(tmp_path / "voc")
    flags = ["--dataset", "voc", "--data-dir", folder, "--mining", kind, "--rounds", 2, "--steps", 3]
    flags += ["--search.min-size", 24]
    assert detection_train.main(_arguments(tmp_path / "flawed", *flags)) == 0
    told = capsys.readouterr().err
    for flaw in (
        "1 annotation absent (unannotated)",
        "1 box of no area (flat#ring)",
        "1 image unreadable (cut)",
        "2 image with no object (all background) (nothing, blank)",
        "1 image with no proposal (blank)",
    ):
        assert flaw in told
    # Which other shapes five pictures leave out is chance.
    assert re.search(r"class never seen in training \([^)]*unicorn\)", told)
    result = _result(tmp_path / "flawed")
    assert result["steps"] == 3 and 0 <= result["map"] <= 1 and result["per_class"]["unicorn"]["ap"] == 0
    lines = training.read_metrics(tmp_path / "flawed" / "metrics.jsonl")
    assert len(lines) == 3 and all(np.isfinite(line["loss"]) for line in lines)


def test_evaluation_of_nothing_is_said_before_anything_is_made(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detection_train, "find_proposals", None)
    flags = _arguments(tmp_path / "none", "--eval-only")
    assert "train there first" in _fails(capsys, detection_train.main, flags)


def test_weights_that_are_none(copied, tmp_path, capsys):
    (tmp_path / "w.npz").write_bytes(b"no zip")
    flags = _arguments(tmp_path / "new", "--init-from", tmp_path / "w.npz")
    assert "no published weights of this network" in _fails(capsys, detection_train.main, flags)
    assert "w.npz: not an .npz" in _fails(capsys, detection_train.main, [*flags, "--model", "vgg16"])


def test_weights_of_a_run_are_evaluated_as_they_come(copied, tmp_path, capsys):
    assert detection_train.main(_arguments(tmp_path / "new", "--init-from", copied, "--eval-only")) == 0
    assert "at their initial values stay 0; not used 0" in capsys.readouterr().err
    assert _result(tmp_path / "new")["steps"] == 0 and _steps(tmp_path / "new") == [0]
    weights = [training.load_variables(folder) for folder in (copied, tmp_path / "new")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_a_run_of_this_script_is_told_from_others(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"config": {"image_size": [3], "nonsense": 1}, "classes": []}')
    flags = ["a.jpg", "--checkpoint", str(tmp_path)]
    assert "config.json" in _fails(capsys, detection_predict_photos.main, flags)
    flags = ["a.jpg", "--checkpoint", str(tmp_path / "none" / "a" / "b")]
    assert "no checkpoint at" in _fails(capsys, detection_predict_photos.main, flags)
    assert "at least one" in _fails(capsys, detection_predict_photos.main, ["--checkpoint", str(tmp_path)])


def test_a_picture_that_is_none(copied, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    flags = [str(tmp_path / "a.jpg"), "--checkpoint", str(copied)]
    assert "a.jpg" in _fails(capsys, detection_predict_photos.main, flags)
    flags = [str(tmp_path / "b.jpg"), "--checkpoint", str(copied)]
    assert "b.jpg" in _fails(capsys, detection_predict_photos.main, flags)
