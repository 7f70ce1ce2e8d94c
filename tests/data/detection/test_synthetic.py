"""Made-up shapes on clutter: boxes that fit, the same pictures from the same seed."""

import numpy as np
import pytest

from hardmine_jax.data.detection import shapes, synthetic
from hardmine_jax.data.images import decode_image


def test_records(tmp_path):
    dataset = synthetic.load(num_train=30, num_validation=10, cache_dir=tmp_path)
    assert dataset.classes == shapes.CLASSES and len(dataset.train) == 30 and len(dataset.validation) == 10
    assert dataset.skipped.count == 0
    for record in dataset.train:
        assert decode_image(record["image"]).shape == (160, 160, 3)
        boxes = record["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min(initial=0) >= 0 and boxes.max(initial=0) <= 160
        assert set(record["labels"].tolist()) <= set(range(1, len(shapes.CLASSES) + 1))
        assert not record["difficult"].any()
    longer = synthetic.load(num_train=31, num_validation=10, cache_dir=tmp_path)
    assert all(longer.train[index]["image"] == dataset.train[index]["image"] for index in range(30))
    other = synthetic.load(seed=1, num_train=1, num_validation=1, cache_dir=tmp_path)
    assert other.train[0]["image"] != dataset.train[0]["image"]


def test_few_objects_and_all_classes_about_as_often():
    shown = [shapes.render(np.random.default_rng(seed)) for seed in range(150)]
    objects = np.array([len(picture.labels) for picture in shown])
    assert objects.max() <= 4 and 1.5 < objects.mean() < 3 and (objects == 0).any()
    often = np.bincount(np.concatenate([picture.labels for picture in shown]), minlength=7)[1:]
    assert often.min() > 0.5 * often.mean()


@pytest.mark.parametrize("kind", shapes.CLASSES)
def test_a_shape_fills_its_area_at_any_angle(kind):
    for angle in (0.0, 0.4, 2.0):
        cover = shapes.draw_shape(kind, 128, np.array([63.2, 64.1]), 40.0, angle)
        # OpenCV draws polygons about half a pixel larger all around.
        np.testing.assert_allclose((cover / 255).sum(), shapes._AREAS[kind] * 40**2, rtol=0.11)


def test_the_same_generator_gives_the_same_bits_and_small_pictures_are_refused():
    first, second = (shapes.render(np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    with pytest.raises(ValueError, match="size=63 < 64"):
        shapes.render(np.random.default_rng(0), size=63)


@pytest.mark.parametrize("options", [{"num_train": 0}, {"num_validation": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        synthetic.load(**options)
