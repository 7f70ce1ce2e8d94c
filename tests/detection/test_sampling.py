"""Fast R-CNN's quotas: how many of each kind, and that every one has the same chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax.detection import sample_rois


def _regions(foreground: int, background: int, easy: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled; easy ones overlap too little, or lie just outside on the upper side."""
    labels = np.repeat([2, 0, 0], [foreground, background, easy])
    overlaps = np.concatenate(
        [
            np.linspace(0.5, 1, foreground),
            np.linspace(0.1, 0.49, background),
            np.resize([0.0, 0.05, 0.0999, 0.5], easy),
        ]
    )
    order = np.random.default_rng(0).permutation(len(labels))
    return labels[order], overlaps[order].astype(np.float32)


@pytest.mark.parametrize(
    "foreground, background, k, expected",
    [
        (50, 50, 40, (10, 30)),
        (3, 97, 40, (3, 37)),  # Background takes the places left free.
        (90, 5, 40, (10, 5)),  # Foreground takes none beyond its quota.
        (0, 100, 40, (0, 40)),
        (100, 0, 40, (10, 0)),
        (0, 0, 40, (0, 0)),
        (20, 30, 6, (2, 4)),
        (20, 30, 1, (0, 1)),
    ],
)
def test_quotas(foreground, background, k, expected):
    labels, overlaps = _regions(foreground, background, 50)
    draw = jax.jit(jax.vmap(lambda key: sample_rois(key, labels, overlaps, k=k)))
    for keep in np.asarray(draw(jax.random.split(jax.random.key(0), 3))):
        assert ((keep & (labels > 0)).sum(), (keep & (labels == 0)).sum()) == expected
        assert not (keep & (labels == 0) & ~((overlaps >= np.float32(0.1)) & (overlaps < 0.5))).any()


def test_the_fraction_and_the_bounds_are_options():
    labels, overlaps = _regions(50, 50, 50)
    keep = sample_rois(
        jax.random.key(0), labels, overlaps, k=60, foreground_fraction=0.5, background=(0.0, 0.1)
    )
    keep = np.asarray(keep)
    assert (keep & (labels > 0)).sum() == 30 and (keep & (labels == 0)).sum() == 30
    assert overlaps[keep & (labels == 0)].max() < 0.1


@pytest.mark.parametrize("fraction, expected", [(0, [0, 2]), (1, [2, 1])])
def test_all_or_no_foreground_whatever_its_label_and_plain_lists_do(fraction, expected):
    labels, overlaps = [1, 0, 7, 0], [0.9, 0.3, 0.6, 0.2]
    keep = sample_rois(jax.random.key(0), labels, overlaps, k=3, foreground_fraction=fraction).tolist()
    assert [sum(keep[0::2]), sum(keep[1::2])] == expected


def test_every_region_of_a_kind_has_the_same_chance():
    labels, overlaps = _regions(8, 12, 4)
    draw = jax.jit(jax.vmap(lambda key: sample_rois(key, labels, overlaps, k=8)))
    often = np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).mean(axis=0)
    # Four standard deviations of a frequency over 4000 draws.
    np.testing.assert_allclose(often[labels > 0], 2 / 8, atol=0.03)
    eligible = (labels == 0) & (overlaps >= 0.1) & (overlaps < 0.5)
    np.testing.assert_allclose(often[eligible], 6 / 12, atol=0.035)


def test_where_leaves_out_and_garbage_there_is_harmless():
    labels, overlaps = _regions(20, 20, 20)
    where = np.arange(60) % 2 == 0
    keep = np.asarray(sample_rois(jax.random.key(1), labels, overlaps, k=30, where=where))
    assert not (keep & ~where).any() and (keep & (labels == 0)).any()
    dirty = np.where(where, overlaps, np.float32(np.nan)), np.where(where, labels, -7)
    again = sample_rois(jax.random.key(1), dirty[1], dirty[0], k=30, where=where)
    np.testing.assert_array_equal(again, keep)


def test_rows_draw_on_their_own_and_the_same_key_draws_the_same():
    labels, overlaps = (np.stack([array] * 3) for array in _regions(20, 30, 10))
    draw = jax.jit(lambda key, labels, overlaps: sample_rois(key, labels, overlaps, k=16))
    keep = draw(jax.random.key(5), labels, overlaps)
    np.testing.assert_array_equal(keep, draw(jax.random.key(5), labels, overlaps))
    assert len({row.tobytes() for row in np.asarray(keep)}) == 3
    keys = jax.random.split(jax.random.key(5), 3)
    mapped = jax.vmap(draw)(keys, labels, overlaps)
    for row in range(3):
        np.testing.assert_array_equal(mapped[row], draw(keys[row], labels[row], overlaps[row]))
        assert ((mapped[row] & (labels[row] > 0)).sum(), mapped[row].sum()) == (4, 16)


def test_no_gradient_flows():
    labels, overlaps = _regions(5, 5, 0)

    def kept(overlaps):
        return jnp.where(sample_rois(jax.random.key(0), labels, overlaps, k=4), overlaps, 0).sum()

    gradient = jax.grad(kept)(overlaps)
    np.testing.assert_array_equal(gradient, sample_rois(jax.random.key(0), labels, overlaps, k=4))


def test_refusals():
    labels, overlaps = _regions(5, 5, 0)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="k=11 > N=10"):
        sample_rois(key, labels, overlaps, k=11)
    with pytest.raises(ValueError, match="k=0 < 1"):
        sample_rois(key, labels, overlaps, k=0)
    with pytest.raises(ValueError, match=r"labels \(9,\) and overlaps \(10,\)"):
        sample_rois(key, labels[1:], overlaps, k=2)
    for fraction in (25, 1.5, -0.5):
        with pytest.raises(ValueError, match=f"foreground_fraction={fraction}"):
            sample_rois(key, labels, overlaps, k=2, foreground_fraction=fraction)
    with pytest.raises(ValueError, match="where must be bool"):
        sample_rois(key, labels, overlaps, k=2, where=overlaps)
