"""A run's outputs keep their names: on going on, on scoring, and where another begins with its weights."""

import json
import pathlib

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest

from hardmine_jax import training
from hardmine_jax.data.coco_json import Category
from hardmine_jax.data.pose import coco
from hardmine_jax.data.pose.records import PoseDataset
from hardmine_jax.data.problems import DataError, Skipped
from hardmine_jax.models.hrnet import ConvNorm
from hardmine_jax.models.layers import Conv
from hardmine_jax.models.torch_weights import WeightsError
from hardmine_jax.pose import Skeleton
from hardmine_jax.tasks.config_json import change
from hardmine_jax.tasks.pose import config as pose_config
from hardmine_jax.tasks.pose import networks
from hardmine_jax.tasks.pose import train as pose_train
from hardmine_jax.tasks.pose.donor import keypoint_axes, match_outputs
from hardmine_jax.tasks.pose.trained_on import check_trained_on
from hardmine_jax.tasks.trainer import begin, make_trainer
from hardmine_jax.tasks.warm_start import Places, take_what_fits

MOUSE = ("nose", "left_ear", "right_ear", "left_paw", "right_paw")


class TinyNetwork(nn.Module):
    num_keypoints: int

    @nn.compact
    def __call__(self, images, train=False):
        features = ConvNorm(4, stride=2, train=train, name="stem1")(images)
        return Conv(self.num_keypoints, 1, use_bias=True, name="final_layer")(features)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(networks, "make_model", lambda name, count, **_: TinyNetwork(count))


def _skeleton(*names: str, sigma=0.1) -> Skeleton:
    return Skeleton(names, coco.infer_flip_pairs(names), (sigma,) * len(names), ())


def _config(workdir: pathlib.Path, **fields) -> pose_config.Config:
    small = {"image_size": (32, 32), "batch_size": 8, "steps": 1000, "k": 1, "ema_decay": 0.0}
    return change(pose_config.Config(), workdir=workdir, **small | fields)


def _trained(workdir: pathlib.Path, *names: str, seed=0) -> pose_config.TrainedRun:
    """A run with a checkpoint of one step, and the category that it was trained on."""
    config, skeleton = _config(workdir, seed=seed), _skeleton(*names)
    pose_config.save_config(config, skeleton, [Category(7, "mouse")])
    _, state = make_trainer(config.run, pose_config.build(config, skeleton))
    checkpoints = training.Checkpoints(workdir)
    checkpoints.save(1, state)
    checkpoints.close()
    return pose_config.load_run(workdir)


def _dataset(skeleton: Skeleton, *categories: Category) -> PoseDataset:
    return PoseDataset("mice", skeleton, [], [], Skipped(), pathlib.Path(), categories)


# Going on, and scoring what is there.


def _begun(workdir: pathlib.Path, **fields) -> pose_config.Config:
    config = _config(workdir, **fields)
    pose_config.save_config(config, _skeleton(*MOUSE), [Category(7, "mouse")])
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    return config


@pytest.mark.parametrize("fields", [{}, {"eval_only": True}, {"eval_only": True, "resume": False}])
@pytest.mark.parametrize("names", [MOUSE[::-1], ("snout", *MOUSE[1:]), (*MOUSE[:3], *MOUSE[:2:-1])])
def test_other_names_or_another_order_are_refused(tmp_path, fields, names):
    run = _begun(tmp_path, **fields).run
    with pytest.raises(DataError, match=f"names {', '.join(MOUSE)}, and .* {', '.join(names)}") as raised:
        check_trained_on(run, _dataset(_skeleton(*names)))
    assert ("another order" in str(raised.value)) == (set(names) == set(MOUSE))


def test_where_many_are_alike_one_sees_those_that_are_not(tmp_path):
    names = [f"keypoint_{number}" for number in range(1, 22)]
    pose_config.save_config(_begun(tmp_path), _skeleton(*names))
    names[18], names[20] = names[20], names[18]
    wanted = "names keypoint_19, keypoint_20, keypoint_21 after the first 18, and .* now has keypoint_21, "
    with pytest.raises(DataError, match=wanted):
        check_trained_on(_config(tmp_path).run, _dataset(_skeleton(*names)))


def test_what_else_the_data_says_now_is_a_note(tmp_path, capsys):
    run, mouse = _begun(tmp_path).run, Category(7, "mouse")
    check_trained_on(run, _dataset(_skeleton(*MOUSE), mouse))
    # Nor where nobody knows the categories, as in an older run.
    check_trained_on(run, _dataset(_skeleton(*MOUSE)))
    assert capsys.readouterr() == ("", "")
    now = Skeleton(("nose", "Left Ear", *MOUSE[2:]), ((3, 4),), (0.2, *(0.1,) * 4), ())
    check_trained_on(run, _dataset(now, Category(3, "mouse")))
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("note: ") for line in told] == [True] * 4
    assert "left_ear = Left Ear" in told[0] and "sigmas nose 0.1, now nose 0.2" in told[1]
    assert "left_ear/right_ear, left_paw/right_paw, now left_paw/right_paw" in told[2]
    assert "category mouse (id 7), now mouse (id 3)" in told[3]


def test_what_does_not_go_on_may_have_any_names(tmp_path):
    other = _dataset(_skeleton(*MOUSE[::-1]))
    check_trained_on(_begun(tmp_path / "anew", resume=False).run, other)
    run = _begun(tmp_path / "never saved").run
    (tmp_path / "never saved" / "checkpoints" / "1").rmdir()
    check_trained_on(run, other)
    check_trained_on(_config(tmp_path / "new").run, other)


def _mice(folder: pathlib.Path, names, name="mice") -> list[str]:
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for n in range(1, 5):
        cv2.imwrite(str(folder / f"{n}.png"), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        images.append({"id": n, "file_name": f"{n}.png"})
        triples = np.column_stack([rng.integers(6, 42, (len(MOUSE), 2)), np.full(len(MOUSE), 2)])
        annotations.append({"id": n, "image_id": n, "category_id": 7, "keypoints": triples.ravel().tolist()})
    category = {"id": 7, "name": "mouse", "keypoints": list(names)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return ["--annotations", str(folder / f"{name}.json"), "--images", str(folder)]


def test_the_command_refuses_and_leaves_the_run_as_it_was(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setattr("hardmine_jax.tasks.run.keep_freed_memory", lambda: True)
    _trained(tmp_path / "run", *MOUSE)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    flags = [
        "--dataset",
        "coco",
        *_mice(tmp_path, MOUSE[::-1]),
        "--workdir",
        str(tmp_path / "run"),
        "--steps",
    ]
    for more in (["2000"], ["2000", "--eval-only"]):
        assert pose_train.main([*flags, *more, "--image-size", "32", "32", "--batch-size", "8"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "nose, left_ear" in line and "now has right_paw, left_paw" in line
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before
    # A second file to validate on, likewise.
    second = ["--validation-annotations", _mice(tmp_path, MOUSE[::-1], "second")[1]]
    first = ["--dataset", "coco", *_mice(tmp_path, MOUSE), "--workdir", str(tmp_path / "new"), *second]
    assert pose_train.main(first) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "second.json" in line and "mice.json" in line and "right_paw" in line


# Beginning with another run's weights.


def _begins(donor: pathlib.Path, *names: str, **fields) -> dict:
    config = _config(donor.parent / "new", init_from=donor, seed=9, **fields)
    functions = pose_config.build(config, _skeleton(*names))
    _, state = make_trainer(config.run, functions)
    return training.evaluation_variables(begin(config.run, functions, state))


def test_weights_go_to_the_keypoints_of_their_names(tmp_path, tiny, capsys):
    donor = _trained(tmp_path / "donor", *MOUSE)
    order = [3, 0, 4, 2, 1]
    variables = _begins(tmp_path / "donor", *(MOUSE[place] for place in order), eval_only=True)
    assert "keypoints taken over by name: 5 of 5" in capsys.readouterr().err
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    theirs, ours = (TinyNetwork(5).apply(one, images) for one in (donor.variables, variables))
    np.testing.assert_allclose(ours, np.asarray(theirs)[..., order], rtol=1e-6)


def test_a_keypoint_that_the_donor_lacks_stays_random_and_is_named(tmp_path, tiny, capsys):
    donor = _trained(tmp_path / "donor", *MOUSE)
    fresh = pose_config.build(_config(tmp_path / "x", seed=9), _skeleton("a", "b", "c"))
    initial = make_trainer(_config(tmp_path / "x", seed=9).run, fresh)[1].params
    variables = _begins(tmp_path / "donor", "tail", "Right-Paw", "nose")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "by name: 2 of 3 (Right-Paw = right_paw); outputs of random weights: 1 (tail)" in told
    for name, leaf in variables["params"]["final_layer"].items():
        expected = np.asarray(donor.variables["params"]["final_layer"][name])[..., [0, 4, 0]]
        expected[..., 0] = initial["final_layer"][name][..., 0]
        np.testing.assert_array_equal(leaf, expected)


def test_what_stays_random_is_never_scored(tmp_path, tiny, capsys):
    _trained(tmp_path / "donor", *MOUSE)
    with pytest.raises(WeightsError, match=r"outputs of random weights: 1 \(tail\)\. .*--eval-only"):
        _begins(tmp_path / "donor", "tail", "nose", eval_only=True)
    # As many, and not one of the same name.
    with pytest.raises(WeightsError, match=r"stay 2 \(params.final_layer.*: 5 \(a, b, c, d, e\)"):
        _begins(tmp_path / "donor", *"abcde", eval_only=True)
    # Another network altogether but for its trunk.
    (tmp_path / "donor" / "config.json").unlink()
    with pytest.raises(WeightsError, match="stay 2"):
        _begins(tmp_path / "donor", "nose", "tail", eval_only=True)


def test_weights_without_names_are_taken_in_their_order_which_is_said(tmp_path, tiny, capsys):
    donor = _trained(tmp_path / "donor", *MOUSE)
    (tmp_path / "donor" / "config.json").unlink()
    variables = _begins(tmp_path / "donor", *MOUSE[::-1])
    assert "names of its outputs are not known" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, variables, donor.variables)


def test_weights_over_keypoints_are_found_by_any_axis():
    config = pose_config.Config(model="laptop_hourglass")

    def init_for(count):
        model = pose_config.make_model(config, count)
        return lambda key: model.init(key, np.zeros((1, 64, 64, 3), np.float32))

    kernels = {"stack0_heatmaps": 3, "stack1_heatmaps": 3, "stack0_remap_heatmaps": 2}
    assert keypoint_axes(init_for, 5) == {
        **{f"params.{name}.kernel": axis for name, axis in kernels.items()},
        "params.stack0_heatmaps.bias": 0, "params.stack1_heatmaps.bias": 0,
    }  # fmt: skip


def test_outputs_are_matched_by_name_whatever_their_number():
    def init_for(count):
        return lambda key: TinyNetwork(count).init(key, np.zeros((1, 8, 8, 3), np.float32))

    outputs = match_outputs(_skeleton("a", "b", "c"), _skeleton("c", "d"), init_for)
    assert outputs.random == ("d",) and outputs.places == {
        "params.final_layer.kernel": Places(3, 3, (2, -1)), "params.final_layer.bias": Places(0, 3, (2, -1)),
    }  # fmt: skip


def test_places_are_taken_along_their_axis_alone():
    old = {"params": {"head": np.arange(6.0).reshape(2, 3), "trunk": np.ones(2)}}
    new = {"params": {"head": np.full((2, 2), -1.0), "trunk": np.zeros(2)}}
    start = take_what_fits(old, new, {"params.head": Places(1, 3, (2, -1))})
    np.testing.assert_array_equal(start.variables["params"]["head"], [[2, -1], [5, -1]])
    assert start.initial == () and (new["params"]["head"] == -1).all()
    # Of another length than the names say, or none in common.
    for places in (Places(1, 4, (2, -1)), Places(1, 3, (-1, -1))):
        assert take_what_fits(old, new, {"params.head": places}).initial == ("params.head",)


def test_categories_come_back_and_an_older_config_json_has_none(tmp_path):
    categories = (Category("m", "mouse"), Category(2, "rat"))
    pose_config.save_config(_config(tmp_path), _skeleton("nose"), categories)
    assert pose_config.load_categories(tmp_path) == categories
    content = json.loads((tmp_path / "config.json").read_text())
    for odd in (None, 3, [[1, "mouse"]], [{"id": 1.5, "name": "mouse"}], [{"id": 1, "name": 2}]):
        (tmp_path / "config.json").write_text(json.dumps(content | {"categories": odd}))
        with pytest.raises(DataError, match="config.json has odd categories"):
            pose_config.load_categories(tmp_path)
    del content["categories"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert pose_config.load_categories(tmp_path) == ()
