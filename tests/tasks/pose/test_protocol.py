"""Weights that people have, a detector's boxes, and MPII's heads, through the script; a tiny network."""

import json
import pathlib

import chex
import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hardmine_jax import training
from hardmine_jax.data.pose import mpii
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError, Skipped
from hardmine_jax.models import SimpleBaseline, simple_baseline, torch_weights
from hardmine_jax.models.hrnet import ConvNorm
from hardmine_jax.models.layers import Conv
from hardmine_jax.models.torch_weights import WeightsError, init_shapes
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import networks
from hardmine_jax.tasks.pose import pictures as pose_pictures
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.evaluation import Evaluator
from hardmine_jax.tasks.pose.networks import OWN_INPUTS, Inputs, to_network
from hardmine_jax.tasks.pose.protocol import prepare_protocol
from hardmine_jax.tasks.warm_start import start_from, take_what_fits

SIDE = 32


class TinyNetwork(nn.Module):
    num_keypoints: int

    @nn.compact
    def __call__(self, images, train=False):
        features = ConvNorm(4, stride=2, train=train, name="stem1")(images)
        features = ConvNorm(4, stride=2, train=train, name="stem2")(features)
        return Conv(self.num_keypoints, 1, use_bias=True, name="final_layer")(features)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "make_model", lambda name, count, **_: TinyNetwork(count))
    monkeypatch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    monkeypatch.setattr(Evaluator, "pictures", lambda *_: [])
    monkeypatch.setattr(pose_pictures, "report_pictures", lambda *_: [])
    monkeypatch.setenv("HARDMINE_CACHE", str(tmp_path / "cache"))


def _run(workdir: pathlib.Path, *more: object) -> int:
    common = ["--workdir", workdir, "--image-size", SIDE, SIDE, "--batch-size", 8, "--log-every", 1]
    return pose_train.main([str(argument) for argument in (*common, *more)])


def _result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture
def birds(tmp_path) -> list:
    """Eight pictures with two birds each; the file to validate on has a crowd and an unlabelled bird too."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(1, 9):
        name = f"{number}.jpg"
        cv2.imwrite(str(tmp_path / "images" / name), rng.integers(0, 255, (80, 100, 3), np.uint8))
        images.append({"id": number, "file_name": name})
        for left in (5, 55):
            points = rng.uniform((left, 10), (left + 40, 70), (3, 2))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                 "bbox": [left, 10, 40, 60], "area": 2400.0, "num_keypoints": 3,
                 "keypoints": np.column_stack([points, np.full(3, 2)]).ravel().tolist()}
            )  # fmt: skip
    bird = {"id": 1, "name": "bird", "keypoints": ["beak", "wing", "tail"], "skeleton": [[1, 2], [2, 3]]}
    content = {"images": images, "annotations": annotations, "categories": [bird]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    crowd = annotations[0] | {"id": 98, "iscrowd": 1, "num_keypoints": 0, "keypoints": [0] * 9}
    unlabelled = annotations[1] | {"id": 99, "num_keypoints": 0, "keypoints": [0] * 9}
    content = content | {"annotations": annotations + [crowd, unlabelled]}
    (tmp_path / "valid.json").write_text(json.dumps(content))
    return ["--dataset", "coco", "--annotations", tmp_path / "train.json", "--images", tmp_path / "images",
            "--validation-annotations", tmp_path / "valid.json"]  # fmt: skip


def test_a_detectors_boxes_are_scored_beside_the_labelled_ones(birds, tmp_path, capsys):
    entries = [
        {"image_id": number, "category_id": 1, "bbox": [left, 10, 40, 60], "score": 0.9}
        for number in range(1, 9)
        for left in (5, 55)
    ]
    odd = [{**entries[0], "image_id": 77}, {**entries[0], "bbox": [1, 1, 0, 5]}]
    (tmp_path / "boxes.json").write_text(json.dumps(entries + odd))
    assert _run(tmp_path / "run", *birds, "--boxes", tmp_path / "boxes.json", "--steps", 1) == 0
    told = capsys.readouterr()
    assert "skipped 2 records" in told.err and "on the detector's boxes: AP" in told.out.replace("\n", " ")
    result = _result(tmp_path / "run")
    assert set(result["detections"]) == {
        "ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large",
    }  # fmt: skip
    # The same boxes and keypoints as in the common evaluation, which makes at most a difference in ranks.
    assert abs(result["detections"]["ar"] - result["ar"]) < 0.05
    assert "on the detector&#x27;s boxes" in (tmp_path / "run" / "report.html").read_text()


def test_boxes_that_are_none_are_said_before_anything_is_trained(birds, tmp_path, capsys):
    for name, content in {"none.json": None, "bad.json": "{", "far.json": '[{"image_id": 77}]'}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        assert _run(tmp_path / "run", *birds, "--boxes", tmp_path / name, "--steps", 1) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and name in error and not (tmp_path / "run").exists()


def _protocol(tmp_path, birds, boxes, **fields):
    """What is scored besides, of birds whose category is 4 in the file to validate on."""
    content = json.loads((tmp_path / "valid.json").read_text())
    content["categories"] = [
        {"id": 4, "name": "bird", "keypoints": ["beak", "wing", "tail"]},
        {"id": 5, "name": "cat"},
    ]
    content["annotations"] = [entry | {"category_id": 4} for entry in content["annotations"]]
    (tmp_path / "valid.json").write_text(json.dumps(content))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    paths = {flag[2:].replace("-", "_"): path for flag, path in zip(birds[::2], birds[1::2], strict=True)}
    config = change(pose_config.Config(), **paths, boxes=tmp_path / "boxes.json", **fields)
    skeleton = Skeleton(("beak", "wing", "tail"), (), (0.1,) * 3, ())
    return prepare_protocol(config, PoseDataset("birds", skeleton, [], [], Skipped(), tmp_path))


def _boxes(*categories, **more) -> list[dict]:
    entry = {"image_id": 1, "bbox": [5, 10, 40, 60]}
    return [entry | {"score": 0.5 + n / 10, "category_id": one} | more for n, one in enumerate(categories)]


def test_boxes_are_of_the_category_that_is_validated_on(birds, tmp_path, capsys):
    def taken(*given, **fields):
        return [round(float(score), 1) for score in _protocol(tmp_path, birds, *given, **fields).boxes.scores]

    assert taken(_boxes(4, 5, 1)) == [0.5] and taken(_boxes(1, category="bird")) == [0.5]
    assert capsys.readouterr().err.startswith("boxes: skipped 2 records: 2 another category (box 1, box 2)")
    assert taken(_boxes(0, 0)) == [0.5, 0.6]
    assert "of category 0, the only one, taken for bird (id 4)" in capsys.readouterr().err
    assert taken(_boxes(1, 5, 1), box_category="1", box_min_score=0.6) == [0.7]
    with pytest.raises(DataError, match="2 another category"):
        taken(_boxes(5, 5))


def _mpii(folder: pathlib.Path, *, heads: bool) -> list:
    rng = np.random.default_rng(0)
    for name in ("annot", "images"):
        (folder / name).mkdir(parents=True)
    for split, first in {"train": 1, "valid": 10}.items():
        people = []
        for number in range(first, first + 8):
            cv2.imwrite(str(folder / "images" / f"{number}.jpg"), rng.integers(0, 255, (90, 90, 3), np.uint8))
            entry = {"image": f"{number}.jpg", "center": [45.0, 40.0], "scale": 0.35,
                     "joints": rng.uniform(10, 80, (16, 2)).tolist(), "joints_vis": [1] * 16}  # fmt: skip
            people.append(entry | ({"headbox": [30, 10, 50, 30]} if heads else {}))
        (folder / "annot" / f"{split}.json").write_text(json.dumps(people))
    return ["--dataset", "mpii", "--data-dir", folder, "--steps", 1]


def test_mpii_is_scored_by_heads(tmp_path, capsys):
    assert _run(tmp_path / "run", *_mpii(tmp_path / "mpii", heads=True)) == 0
    result = _result(tmp_path / "run")
    assert tuple(result["per_joint"]) == mpii.MPII_SKELETON.names
    assert 0 <= result["pckh"]["pckh@0.1"] <= result["pckh"]["pckh@0.5"] <= 1
    assert "PCKh@0.5" in capsys.readouterr().out


def test_mpii_without_heads_goes_without_pckh(tmp_path, capsys):
    assert _run(tmp_path / "run", *_mpii(tmp_path / "mpii", heads=False)) == 0
    assert "note: no PCKh" in capsys.readouterr().err and "pckh" not in _result(tmp_path / "run")


def test_a_run_begins_with_anothers_weights_and_is_not_disturbed_by_them_again(birds, tmp_path, capsys):
    assert _run(tmp_path / "donor", *birds, "--steps", 2) == 0
    more = ["--init-from", tmp_path / "donor", "--optimizer.learning-rate", 1e-12, "--ema-decay", 0]
    assert _run(tmp_path / "run", *birds, *more, "--steps", 1) == 0
    assert "at their initial values stay 0; not used 0" in capsys.readouterr().err
    donor, here = (training.load_variables(tmp_path / name, which="latest") for name in ("donor", "run"))
    chex.assert_trees_all_close(here["params"], donor["params"], rtol=1e-5)
    # Going on needs the donor no more.
    (tmp_path / "donor").rename(tmp_path / "gone")
    assert _run(tmp_path / "run", *birds, *more, "--steps", 2) == 0
    assert "resuming from step 1" in capsys.readouterr().out
    assert _run(tmp_path / "other", *birds, *more, "--steps", 1) == 2
    assert f"--init-from {tmp_path / 'donor'}: no such file" in capsys.readouterr().err


def test_weights_are_evaluated_as_they_come_and_kept_as_a_run(birds, tmp_path):
    assert _run(tmp_path / "donor", *birds, "--steps", 2) == 0
    assert _run(tmp_path / "run", *birds, "--init-from", tmp_path / "donor", "--eval-only") == 0
    donor, here = _result(tmp_path / "donor"), _result(tmp_path / "run")
    assert here["steps"] == 0 and here["pck"] == donor["pck"] and here["ap"] == donor["ap"]
    kept = training.load_variables(tmp_path / "run")
    chex.assert_trees_all_equal(kept, training.load_variables(tmp_path / "donor", which="latest"))
    assert pose_config.load_config(tmp_path / "run")[1].names == ("beak", "wing", "tail")


def _state(model, variables) -> training.TrainState:
    return training.create_state(
        variables, apply_fn=model.apply, optimizer=optax.sgd(0.1), key=jax.random.key(0), ema_decay=0.9
    )


@pytest.fixture
def published() -> tuple[SimpleBaseline, dict, dict]:
    """A thin network, variables of it, and the entries of a published one with other keypoints."""
    model = SimpleBaseline(18, num_keypoints=3, width=4, deconvolution_features=4)
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 7.0), init_shapes(model))
    other = init_shapes(SimpleBaseline(18, num_keypoints=5, width=4, deconvolution_features=4))
    names = (simple_baseline._torch_name, simple_baseline._DECONVOLUTIONS)
    leaves, layout = torch_weights._layout(other, *names)
    rng = np.random.default_rng(0)
    shapes = torch_weights._shapes(leaves, layout)
    return model, variables, {name: rng.uniform(0.5, 1.5, shape) for name, shape in shapes.items()}


def test_a_published_file_fills_what_fits_and_the_rest_is_reported(published, tmp_path, capsys):
    model, variables, entries = published
    np.savez(tmp_path / "weights.npz", **entries)
    state = _state(model, variables)
    state = start_from(tmp_path / "weights.npz", state, simple_baseline.warm_start)
    told = capsys.readouterr().err
    assert "stay 2 (final_layer.bias, final_layer.weight)" in told and "not used 2" in told
    chex.assert_trees_all_equal(state.params, state.ema_params)
    kernel = state.params["trunk"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, np.float32(entries["conv1.weight"]).transpose(2, 3, 1, 0))
    assert (state.params["final_layer"]["kernel"] == 7).all()
    assert not any((leaf == 7).any() for leaf in jax.tree.leaves(state.batch_stats))


def test_files_that_cannot_be_are_one_error(published, tmp_path):
    model, variables, entries = published
    state = _state(model, variables)
    (tmp_path / "w.npz").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="w.npz"):
        start_from(tmp_path / "w.npz", state, simple_baseline.warm_start)
    del entries["layer1.0.conv1.weight"]
    np.savez(tmp_path / "cut.npz", **entries)
    with pytest.raises(WeightsError, match="missing layer1.0.conv1.weight"):
        start_from(tmp_path / "cut.npz", state, simple_baseline.warm_start)
    with pytest.raises(WeightsError, match="no published weights"):
        start_from(tmp_path / "cut.npz", state, None)
    with pytest.raises(WeightsError, match="none of the"):
        take_what_fits({"params": {"a": np.ones(2)}}, {"params": {"a": np.ones(3)}})


def test_bgr_networks_see_the_colours_the_other_way_round():
    images = np.random.default_rng(0).integers(0, 255, (1, 4, 4, 3), np.uint8)
    bgr = Inputs(channels="bgr")
    there = to_network(jnp.asarray(images), bgr)
    here = to_network(jnp.asarray(images[..., ::-1]), OWN_INPUTS)
    chex.assert_trees_all_equal(there, here)
