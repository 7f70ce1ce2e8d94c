"""Suppression of poses against a plain loop in float64; the greedy core itself is tested in tests/mining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.pose import oks_nms

SIGMAS = (0.026, 0.079, 0.107, 0.062)


def _crowd(number=120, people=25, seed=0):
    """Poses in heaps around some people, areas of every size, scores with ties."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 600, (people, 1, 2)) + rng.uniform(-60, 60, (people, 4, 2))
    who = rng.integers(0, people, number)
    keypoints = centres[who] + rng.normal(0, 1, (number, 4, 2)) * rng.choice([1.0, 4.0], (number, 1, 1))
    areas = rng.uniform(2000, 40000, number)
    return np.float32(keypoints), np.float32(rng.integers(0, 40, number)), np.float32(areas)


def _similarity(keypoints, areas, i, j) -> float:
    """The released formula: mean over all keypoints, mean of the two areas."""
    total = 0.0
    for k, sigma in enumerate(SIGMAS):
        squared = float(((np.float64(keypoints[i, k]) - keypoints[j, k]) ** 2).sum())
        total += np.exp(-squared / (2 * sigma) ** 2 / ((float(areas[i]) + float(areas[j])) / 2) / 2)
    return total / len(SIGMAS)


def _by_loop(keypoints, scores, areas, threshold, where=None) -> list[int]:
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if (where is None or where[i]) and all(
            _similarity(keypoints, areas, i, j) <= threshold for j in kept
        ):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_is_the_plain_loop(threshold):
    poses = _crowd()
    expected = _by_loop(*poses, threshold)
    indices, where = oks_nms(*poses, sigmas=SIGMAS, threshold=threshold, max_kept=120)
    assert 20 < len(expected) < 115
    np.testing.assert_array_equal(indices[where], expected)
    np.testing.assert_array_equal(where, np.arange(120) < len(expected))


@pytest.mark.parametrize("max_kept", [1, 20, 120])
def test_is_the_plain_loop_where_some_take_part_inside_jit(max_kept):
    keypoints, scores, areas = _crowd(seed=1)
    take_part = np.random.default_rng(2).random(120) < 0.7
    expected = _by_loop(keypoints, scores, areas, 0.6, take_part)[:max_kept]
    scores = np.where(take_part, scores, np.float32(np.nan))

    @jax.jit
    def run(keypoints, scores, areas, threshold):
        return oks_nms(
            keypoints, scores, areas, sigmas=SIGMAS, threshold=threshold, max_kept=max_kept, where=take_part
        )

    indices, where = run(keypoints, scores, areas, 0.6)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    assert where.sum() == len(expected) and indices.dtype == jnp.int32


def test_larger_areas_make_poses_more_alike():
    keypoints = np.float32([[[0, 0]] * 4, [[3, 0]] * 4])
    scores = np.float32([2, 1])
    small, large = (np.full(2, area, np.float32) for area in (400, 40000))
    assert oks_nms(keypoints, scores, small, sigmas=SIGMAS, max_kept=2)[1].sum() == 2
    assert oks_nms(keypoints, scores, large, sigmas=SIGMAS, max_kept=2)[1].sum() == 1


def test_plain_lists_do():
    poses = [[[0.0, 0.0]], [[1.0, 0.0]], [[60.0, 0.0]]]
    indices, where = oks_nms(poses, [0.8, 0.7, 0.9], [900.0] * 3, sigmas=[0.1], max_kept=3)
    assert indices[where].tolist() == [2, 0]


def test_equal_to_the_threshold_stays_and_nan_resembles_none():
    keypoints = np.float32([[[0, 0]] * 4, [[0, 0]] * 4, [[np.nan, 0]] * 4])
    scores, areas = np.float32([1, 2, 3]), np.full(3, 900, np.float32)
    options = dict(sigmas=SIGMAS, max_kept=3)
    assert oks_nms(keypoints, scores, areas, threshold=1.0, **options)[1].all()
    indices, where = oks_nms(keypoints, scores, areas, threshold=0.99, **options)
    assert indices[where].tolist() == [2, 1]


def test_vmap_over_images_is_a_loop():
    images = [np.stack(arrays) for arrays in zip(*(_crowd(40, 8, seed) for seed in range(3)), strict=True)]

    def run(keypoints, scores, areas):
        return oks_nms(keypoints, scores, areas, sigmas=SIGMAS, max_kept=20)

    indices, where = jax.jit(jax.vmap(run))(*images)
    for image in range(3):
        alone = run(*(array[image] for array in images))
        np.testing.assert_array_equal(indices[image], alone[0])
        np.testing.assert_array_equal(where[image], alone[1])


def test_memory_is_in_proportion_to_n():
    def run(keypoints, scores, areas):
        return oks_nms(keypoints, scores, areas, sigmas=(0.05,) * 17, max_kept=20)

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(4096, 17, 2), (4096,), (4096,)])
    memory = jax.jit(run).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 4096 * 17 * 4 * 8


def test_refusals():
    keypoints, scores, areas = _crowd(5)
    with pytest.raises(ValueError, match="max_kept=6 > N=5"):
        oks_nms(keypoints, scores, areas, sigmas=SIGMAS, max_kept=6)
    with pytest.raises(ValueError, match=r"keypoints \(5, 4, 2\).* and 3 sigmas must be \[N, K, 2\]"):
        oks_nms(keypoints, scores, areas, sigmas=SIGMAS[:3], max_kept=2)
    with pytest.raises(ValueError, match="max_kept=0 < 1"):
        oks_nms(keypoints, scores, areas, sigmas=SIGMAS, max_kept=0)
    with pytest.raises(ValueError, match=r"scores \(1, 5\), areas \(1, 5\)"):
        oks_nms(keypoints[None], scores[None], areas[None], sigmas=SIGMAS, max_kept=1)
    with pytest.raises(ValueError, match=r"areas \(4,\)"):
        oks_nms(keypoints, scores, areas[:4], sigmas=SIGMAS, max_kept=2)
