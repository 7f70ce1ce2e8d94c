"""Proposals of a whole source: kept, found again, made again when damaged."""

import os
import pickle

import numpy as np
import pytest

from hardmine_jax.data.detection import proposals, synthetic, voc
from hardmine_jax.data.detection.proposals import SearchConfig
from hardmine_jax.data.problems import DataError, UnreadableImage
from hardmine_jax.detection import proposals as search
from hardmine_jax.detection.boxes import iou
from hardmine_jax.errors import UserError

CONFIG = SearchConfig(scale=0.5, max_proposals=40)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return synthetic.load(num_train=4, num_validation=1, cache_dir=folder).train


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Grows by one with each image searched."""
    calls, real = [], proposals.search_image
    monkeypatch.setattr(proposals, "search_image", lambda *given: calls.append(1) or real(*given))
    return calls


def files(folder):
    return sorted(folder.rglob("*.npy"))


def best_overlaps(source, found) -> np.ndarray:
    """[all objects of all images]: the overlap of the best proposal with each."""
    objects = [index for index in range(len(source)) if len(source[index]["boxes"])]
    return np.concatenate([np.asarray(iou(source[i]["boxes"], found[i])).max(-1) for i in objects])


def test_found_once_and_read_afterwards(source, searched, tmp_path, capfd):
    first = proposals.prepare(source, CONFIG, cache_dir=tmp_path)
    assert len(searched) == len(files(tmp_path)) == 4
    assert "preparing proposals" in capfd.readouterr().err
    again = proposals.prepare(source, CONFIG, cache_dir=tmp_path, threads=1)
    assert len(searched) == 4 and capfd.readouterr().err == ""
    for index in range(4):
        np.testing.assert_array_equal(first[index], again[index])
        np.testing.assert_array_equal(first[index], proposals.search_image(source[index]["image"], CONFIG))
        boxes = first[index]
        assert boxes.dtype == np.float32 and boxes.shape == (first.counts[index], 4) and len(boxes) <= 40
        assert boxes.min() >= 0 and boxes.max() <= 160 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(first) == 4 and (first[-1] == first[3]).all() and first.skipped.report() == "skipped nothing"
    with pytest.raises(IndexError, match="proposals 4 of 4"):
        first[4]


def test_other_settings_are_other_files(source, searched, tmp_path):
    proposals.prepare(source, CONFIG, cache_dir=tmp_path)
    few = proposals.prepare(source, SearchConfig(scale=0.5, max_proposals=3), cache_dir=tmp_path)
    assert len(searched) == 8 and few.counts.max() == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "shape", "nan", "gone"])
def test_a_damaged_file_is_made_again(source, searched, tmp_path, damage):
    found = proposals.prepare(source, CONFIG, cache_dir=tmp_path)
    before = [found[index] for index in range(4)]
    file = proposals._file(found._folder, found._hashes[2])
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    elif damage == "shape":
        np.save(file, np.zeros((3, 5), np.float32))
    elif damage == "nan":
        np.save(file, np.full((3, 4), np.float32("nan")))
    else:
        file.write_bytes({"cut": whole[:-7], "empty": b"", "text": b"hello"}[damage])
    # By the one who reads, and by the next run.
    np.testing.assert_array_equal(found[2], before[2])
    assert file.read_bytes() == whole and len(searched) == 5
    file.write_bytes(whole[:-7])
    again = proposals.prepare(source, CONFIG, cache_dir=tmp_path)
    assert len(searched) == 6 and all((again[index] == before[index]).all() for index in range(4))
    assert len(files(tmp_path)) == len(list(found._folder.iterdir())) == 4


def test_an_image_without_proposals_is_named_and_the_rest_goes_on(source, tmp_path):
    records = [{**source[0], "image": b"gone", "name": "bad"}, source[1], source[1]]
    found = proposals.prepare(records, CONFIG, cache_dir=tmp_path)
    assert found[0].shape == (0, 4) and found[0].dtype == np.float32
    assert found.skipped.noted == {"image unreadable": ("bad",)}
    huge = SearchConfig(min_size=1000)
    assert proposals.prepare(records[1:], huge, cache_dir=tmp_path).skipped.noted == {
        "image with no proposal": (source[1]["name"],) * 2
    }


def test_it_pickles_without_its_boxes(source, tmp_path):
    found = proposals.prepare(source, CONFIG, cache_dir=tmp_path)
    packed = pickle.dumps(found)
    assert len(packed) < 3000
    np.testing.assert_array_equal(pickle.loads(packed)[1], found[1])


def test_an_unwritable_cache_is_one_clear_line(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the cache .*HARDMINE_CACHE"):
        proposals.prepare(source, CONFIG, cache_dir=tmp_path / "file")


@pytest.mark.parametrize("wrong", [{"scale": 1.5}, {"mode": "slow"}, {"base_k": 0}, {"max_proposals": 0}])
def test_senseless_settings_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value!r}"):
        SearchConfig(**wrong)


def test_opencv_without_its_contrib_modules_is_the_users_to_mend(source, monkeypatch):
    def without(*_, **__):
        raise ImportError("pip install opencv-contrib-python-headless")

    monkeypatch.setattr(search, "selective_search", without)
    with pytest.raises(UserError, match="pip install opencv"):
        proposals.search_image(source[0]["image"], CONFIG)


def test_shapes_are_covered(source, tmp_path):
    found = proposals.prepare(source, SearchConfig(scale=0.625, base_k=100), cache_dir=tmp_path)
    assert best_overlaps(source, found).mean() > 0.8


@pytest.mark.slow
def test_real_cells_are_covered(bccd_dir, tmp_path):
    source = voc.load(bccd_dir).validation
    found = proposals.prepare(source, SearchConfig(scale=0.5), cache_dir=tmp_path)
    assert 450 < found.counts.mean() < 520 and np.mean(best_overlaps(source, found) >= 0.5) > 0.82
    assert os.listdir(tmp_path) == ["proposals"]


def test_a_record_that_cannot_be_read_has_no_proposals(source, tmp_path):
    class Damaged:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 2:
                raise UnreadableImage("example 2 is damaged")
            return source[index]

    found = proposals.prepare(Damaged(), CONFIG, cache_dir=tmp_path)
    assert found.counts[2] == 0 and all(found.counts[[0, 1, 3]])
    assert found.skipped.noted == {"image unreadable": ("record 2",)}
    assert found[2].shape == (0, 4)
