"""Laws of `pose`: the dtype changes no answer, what `where` leaves out changes nothing, N may be 0.

All of it under strict promotion of dtypes and ranks (tests/conftest.py).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hardmine_jax import pose

FACE = pose.Skeleton(("nose", "left eye", "right eye"), ((1, 2),), (0.1, 0.2, 0.3), ((0, 1),))
# The largest whole number of each dtype that squares, sums or mirrored places overflow, or lose digits of.
LARGEST = {"int8": 127, "uint8": 255, "int16": 20_000, "int32": 70_000, "float16": 2_000, "bfloat16": 256}
LARGEST |= {"list": 250}
ROWS, HEIGHT, WIDTH = 4, 6, 7


def _wide(results):
    """float64; a list of them for a tuple."""
    return jax.tree.map(lambda result: np.asarray(result, np.float64), results)


def _decoded(method):
    return lambda cast, x: pose.decode_heatmaps(cast(x["maps"]), method=method)


def _on_device(function):
    return lambda cast, x: function(lambda array: jnp.asarray(cast(array)), x)


def _in_numpy(function):
    return lambda cast, x: function(lambda array: np.asarray(cast(array)), x)


def _there(cast, x):
    return pose.image_to_heatmap(cast(x["points"]), stride=4, origin=3)


def _back(cast, x):
    return pose.heatmap_to_image(cast(x["points"]), stride=4, origin=3), pose.heatmap_to_image(
        cast(x["points"]), stride=4
    )


def _mirrored(cast, x):
    return pose.flip_keypoints(cast(x["points"]), cast(x["seen"]), width=9, skeleton=FACE)


# Every function by the name that `pose` has it under: (cast, numbers) -> what is compared.
FUNCTIONS = {
    "affine_matrix": lambda cast, x: pose.affine_matrix(
        cast(x["one"]), cast(x["sides"]), 30.0, size=(300, 400)
    ),
    "apply_affine": _on_device(lambda cast, x: pose.apply_affine(cast(x["matrix"]), cast(x["points"]))),
    "apply_affine numpy": _in_numpy(lambda cast, x: pose.apply_affine(cast(x["matrix"]), cast(x["points"]))),
    "box_to_centre_scale": lambda cast, x: pose.box_to_centre_scale(cast(x["box"]), aspect=0.75),
    "decode_heatmaps argmax": _decoded("argmax"),
    "decode_heatmaps dark": _decoded("dark"),
    "decode_heatmaps quarter": _decoded("quarter"),
    "encode_heatmaps": lambda cast, x: pose.encode_heatmaps(cast(x["points"]), size=(99, 98), sigma=50.0),
    "flip_heatmaps": _on_device(lambda cast, x: pose.flip_heatmaps(cast(x["maps"]), skeleton=FACE, shift=1)),
    "flip_keypoints": _on_device(_mirrored),
    "flip_keypoints numpy": _in_numpy(_mirrored),
    "half_body": lambda cast, x: pose.half_body(
        cast(x["points"][0]), cast(x["seen"][0]), [0], np.random.default_rng(0)
    ),
    "heatmap_mse": lambda cast, x: pose.heatmap_mse(cast(x["maps"]), cast(x["maps"][::-1])),
    "heatmap_to_image": _on_device(_back),
    "heatmap_to_image numpy": _in_numpy(_back),
    "image_to_heatmap": _on_device(_there),
    "image_to_heatmap numpy": _in_numpy(_there),
    "invert_affine": lambda cast, x: pose.invert_affine(cast(x["matrix"])),
    "ohkm": lambda cast, x: pose.ohkm(cast(x["maps"]), cast(x["maps"][::-1]), k=2),
    "oks": lambda cast, x: pose.oks(
        cast(x["points"]), cast(x["others"]), area=cast(x["reference"]), sigmas=FACE.sigmas
    ),
    "oks_nms": lambda cast, x: pose.oks_nms(
        cast(x["points"]),
        np.float32(x["reference"]),
        cast(x["reference"]),
        sigmas=FACE.sigmas,
        threshold=0.5,
        max_kept=4,
    ),
    "pck": lambda cast, x: pose.pck(
        cast(x["points"]), cast(x["others"]), reference=cast(x["reference"]), fraction=1
    ),
    "pck_correct": lambda cast, x: pose.pck_correct(
        cast(x["points"]), cast(x["others"]), reference=cast(x["reference"]), fraction=0.5
    ),
    "pckh": lambda cast, x: pose.pckh(cast(x["points"]), cast(x["others"]), reference=cast(x["reference"])),
    "person_scores": lambda cast, x: pose.person_scores(cast(x["points"][..., 0]), cast(x["reference"])),
}


def _numbers(largest: int) -> dict[str, np.ndarray]:
    """Whole numbers up to the largest, so that every dtype holds them."""
    rng = np.random.default_rng(0)
    points, others = rng.integers(0, largest + 1, (2, ROWS, 3, 2))
    points[0], others[0] = largest, 0
    points[1] = others[1]
    reference = np.array([largest, 1, largest // 2, largest // 3])
    return {
        "points": points,
        "others": others,
        "reference": reference,
        "seen": np.array([[1, 2, 2]] * ROWS),
        "maps": rng.integers(0, largest + 1, (2, HEIGHT, WIDTH, 3)),
        "matrix": np.array([[[2, 0, largest], [1, 4, 3]]] * ROWS),
        "one": np.array([largest, 3]),
        "sides": np.array([largest, 2]),
        "box": np.array([0, 1, largest, largest]),
    }


@functools.cache
def _expected(name: str, largest: int):
    with jax.enable_x64(True):
        return _wide(FUNCTIONS[name](lambda array: np.asarray(array, np.float64), _numbers(largest)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_dtype_of_whole_numbers_changes_no_answer(name):
    for dtype, largest in LARGEST.items():
        takes_lists = "numpy" not in name and name not in ("invert_affine", "apply_affine")

        def cast(array, dtype=dtype, takes_lists=takes_lists):
            if dtype == "list":
                return array.tolist() if takes_lists else np.asarray(array)
            return np.asarray(array).astype(jnp.dtype(dtype))

        found = _wide(FUNCTIONS[name](cast, _numbers(largest)))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(_expected(name, largest)), strict=True):
            # The place of a peak is the root of differences of logarithms.
            loose = (
                dict(rtol=1e-3, atol=1e-3) if name.endswith("dark") else dict(rtol=2e-5, atol=1e-6 * largest)
            )
            np.testing.assert_allclose(one, other, **loose, err_msg=dtype)


def test_every_function_stands_in_the_table():
    assert jax.config.jax_numpy_dtype_promotion == "strict" and jax.config.jax_numpy_rank_promotion == "raise"
    assert {name.split()[0] for name in FUNCTIONS} == set(pose.__all__) - {"Skeleton"}


POINTS = np.float32(np.random.default_rng(1).uniform(0, 9, (ROWS, 3, 2)))
OTHERS = POINTS[::-1] + 0.5
MAPS = np.float32(np.random.default_rng(2).random((ROWS, HEIGHT, WIDTH, 3)))
WHERE = np.array([[True, False, True], [False] * 3, [True] * 3, [False, True, False]])
AREA = np.float32([9, 20, 30, 40])


# (where [B, K], planted arrays) -> what must not change.
WITH_WHERE = {
    "pck_correct": lambda where, a, b: pose.pck_correct(a, b, reference=AREA, where=where),
    "pck": lambda where, a, b: pose.pck(a, b, reference=AREA, where=where),
    "pckh": lambda where, a, b: pose.pckh(a, b, reference=AREA, where=where),
    "oks": lambda where, a, b: pose.oks(a, b, area=AREA, sigmas=FACE.sigmas, where=where),
    "encode_heatmaps": lambda where, a, b: pose.encode_heatmaps(a + b, size=(8, 9), sigma=2.0, where=where),
}
WITH_MAPS = {
    "heatmap_mse": lambda where, a, b: pose.heatmap_mse(a, b, where=where),
    "ohkm": lambda where, a, b: pose.ohkm(a, b, k=2, where=where),
}


@pytest.mark.parametrize("name", [*WITH_WHERE, *WITH_MAPS])
def test_what_where_leaves_out_changes_neither_value_nor_gradient(name):
    maps = name in WITH_MAPS
    arrays, function = ((MAPS, MAPS[::-1]), WITH_MAPS[name]) if maps else ((POINTS, OTHERS), WITH_WHERE[name])
    out = WHERE[:, None, None] if maps else WHERE[..., None]

    @jax.jit
    def run(*arrays):
        value, pull = jax.vjp(lambda *x: jnp.float32(function(WHERE, *x)), *arrays)
        return value, pull(jnp.ones_like(value))

    value, gradients = run(*arrays)
    for planted in (np.nan, np.inf, -np.inf, 1e38, -3e38):
        for which in ((True, False), (False, True), (True, True)):
            dirty = [
                np.where(out, array, np.float32(planted)) if plant else array
                for array, plant in zip(arrays, which, strict=True)
            ]
            jax.tree.map(np.testing.assert_array_equal, run(*dirty), (value, gradients))
    for gradient in gradients:
        np.testing.assert_array_equal(np.where(out, 0, gradient), 0)


def test_the_area_of_somebody_without_labels_changes_nothing():
    def total(points, area):
        return pose.oks(points, OTHERS, area=area, sigmas=FACE.sigmas, where=WHERE).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    expected = run(POINTS, AREA)
    for planted in (np.nan, np.inf, 0, -1, 1e38):
        area = np.where(WHERE.any(-1), AREA, np.float32(planted))
        jax.tree.map(np.testing.assert_array_equal, run(POINTS, area), expected)


@pytest.mark.parametrize("planted", [np.inf, -np.inf, 1e20, 3e38, np.nan])
def test_a_point_that_is_lost_leaves_the_others_their_gradient(planted):
    dirty = POINTS.copy()
    dirty[0, 1] = planted

    @jax.jit
    def run(points):
        targets = pose.encode_heatmaps(points, size=(8, 9), sigma=2.0)
        similarity = pose.oks(points, OTHERS, area=AREA, sigmas=FACE.sigmas)
        weights = jnp.arange(targets.size, dtype=jnp.float32).reshape(targets.shape)
        return (targets * weights).sum() + similarity.sum()

    others = np.ones((ROWS, 3), bool)
    others[0, 1] = False
    gradient = np.asarray(jax.grad(run)(dirty))
    others[0] &= not np.isnan(planted)
    np.testing.assert_allclose(
        gradient[others], np.asarray(jax.grad(run)(POINTS))[others], rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(gradient).all() or np.isnan(planted)


def test_poses_that_take_no_part_suppress_nobody():
    where = np.array([True, False, True, False])
    keep = functools.partial(pose.oks_nms, sigmas=FACE.sigmas, max_kept=3)
    indices, kept = keep(POINTS, AREA, AREA, where=where)
    for planted in (np.nan, np.inf, -np.inf, 1e38):
        dirty = [
            np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(planted)) for x in (POINTS, AREA)
        ]
        again = keep(dirty[0], dirty[1], dirty[1], where=where)
        np.testing.assert_array_equal(again[1], kept)
        np.testing.assert_array_equal(again[0][kept], indices[kept])


@pytest.mark.parametrize("name", [*WITH_WHERE, *WITH_MAPS])
def test_where_is_bool_of_the_shape_of_the_keypoints(name):
    arrays, function = (
        ((MAPS, MAPS), WITH_MAPS[name]) if name in WITH_MAPS else ((POINTS, OTHERS), WITH_WHERE[name])
    )
    by_list, by_array = (function(where, *arrays) for where in (WHERE.tolist(), jnp.asarray(WHERE)))
    np.testing.assert_array_equal(by_list, by_array)
    visibility = np.where(WHERE, 2, 0)
    for wrong in (visibility, visibility.astype(np.uint8), visibility.tolist(), WHERE.astype(np.float32)):
        with pytest.raises(ValueError, match=r"must be bool\(4, 3\), .* `visibility > 0`"):
            function(wrong, *arrays)
    for shape in ((4,), (3,), (1, 3), (4, 1), (3, 4), ()):
        with pytest.raises(ValueError, match=r"where bool.* must be bool\(4, 3\)"):
            function(np.ones(shape, bool), *arrays)


def test_nobody_at_all():
    nobody, nothing = np.zeros((0, 3, 2), np.float32), np.zeros(0, np.float32)
    assert pose.pck(nobody, nobody, reference=nothing) == 0
    assert pose.pckh(nobody, nobody, reference=10, where=np.zeros((0, 3), bool)) == 0
    assert pose.oks(nobody, nobody, area=nothing, sigmas=FACE.sigmas).shape == (0,)
    assert pose.person_scores(nobody[..., 0], nothing).shape == (0,)
    assert pose.person_scores(np.zeros((2, 0)), np.ones(2)).tolist() == [0, 0]
    assert pose.encode_heatmaps(nobody, size=(4, 5), sigma=1.0).shape == (0, 4, 5, 3)
    assert pose.encode_heatmaps(np.zeros((2, 0, 2)), size=(4, 5), sigma=1.0).shape == (2, 4, 5, 0)
    assert pose.heatmap_mse(np.zeros((0, 4, 5, 3)), np.zeros((0, 4, 5, 3))).shape == (0, 3)
    for method in ("dark", "quarter", "argmax"):
        for shape in ((0, 4, 5, 3), (2, 4, 5, 0)):
            points, scores = pose.decode_heatmaps(np.zeros(shape, np.float32), method=method)
            assert points.shape == (*scores.shape, 2) == (shape[0], shape[-1], 2)
    value, gradient = jax.value_and_grad(pose.ohkm)(jnp.zeros((0, 4, 5, 3)), jnp.zeros((0, 4, 5, 3)), k=2)
    assert value == 0 and gradient.shape == (0, 4, 5, 3)
    flipped, seen = pose.flip_keypoints(nobody, nobody[..., 0], width=9, skeleton=FACE)
    assert flipped.shape == (0, 3, 2) and seen.shape == (0, 3)
    assert pose.apply_affine(np.zeros((0, 2, 3)), jnp.asarray(nobody)).shape == (0, 3, 2)
    assert pose.invert_affine(np.zeros((0, 2, 3))).shape == (0, 2, 3)
    assert pose.half_body(np.zeros((0, 2)), np.zeros(0), (), np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match="max_kept=1 > N=0"):
        pose.oks_nms(nobody, nothing, nothing, sigmas=FACE.sigmas, max_kept=1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pose.box_to_centre_scale((0, 0, 9, 9), aspect=-1), "aspect=-1"),
        (lambda: pose.box_to_centre_scale((0, 0, 9, 9), aspect=0), "aspect=0"),
        (lambda: pose.box_to_centre_scale((0, 0, 9, 9), aspect=np.nan), "aspect=nan"),
        (lambda: pose.box_to_centre_scale((0, 0, 9, 9), aspect=np.inf), "aspect=inf"),
        (lambda: pose.box_to_centre_scale((0, 0, 9, 9), aspect=1, padding=0), "padding=0"),
        (lambda: pose.box_to_centre_scale((0, 0, 9), aspect=1), r"box of shape \(3,\)"),
        (lambda: pose.affine_matrix((0, np.nan), (1, 1), 0, size=(2, 2)), "must be finite"),
        (lambda: pose.affine_matrix((0, 0), (1, np.inf), 0, size=(2, 2)), "must be finite"),
        (lambda: pose.affine_matrix((0, 0), (1, 1), np.nan, size=(2, 2)), "must be finite"),
        (lambda: pose.invert_affine(np.zeros((2, 3))), "has no inverse"),
        (lambda: pose.invert_affine(np.eye(3)), r"\(3, 3\) must be"),
        (lambda: pose.decode_heatmaps(MAPS, blur_sigma=0), "blur_sigma=0"),
        (lambda: pose.decode_heatmaps(MAPS, blur_sigma=np.nan), "blur_sigma=nan"),
        (lambda: pose.decode_heatmaps(MAPS[:, :0]), r"\(4, 0, 7, 3\)"),
        (lambda: pose.encode_heatmaps(POINTS, size=(4, 4), sigma=np.nan), "sigma=nan"),
        (
            lambda: pose.oks_nms(POINTS, AREA, AREA, sigmas=FACE.sigmas, max_kept=1, threshold=90),
            "threshold=90",
        ),
        (lambda: pose.oks(POINTS, OTHERS, area=AREA, sigmas=(0.1,)), r"sigmas of shape \(1,\) for 3"),
        (lambda: pose.oks(POINTS, OTHERS[:, :1], area=AREA, sigmas=(0.1,) * 3), r"target \(4, 1, 2\)"),
        (lambda: pose.pck(MAPS[0], MAPS[0], reference=1), r"must be \[\.\.\., K, 2\]"),
        (lambda: pose.flip_keypoints(POINTS, WHERE[:, :2], width=4, skeleton=FACE), r"visibility \(4, 2\)"),
        (lambda: pose.half_body(POINTS[0], np.ones(4), (), np.random.default_rng(0)), r"visibility \(4,\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: pose.image_to_heatmap([1.0, 2.0], stride=4),
        lambda: pose.flip_keypoints(POINTS.tolist(), WHERE, width=4, skeleton=FACE),
        lambda: pose.flip_keypoints(POINTS, WHERE.tolist(), width=4, skeleton=FACE),
        lambda: pose.flip_heatmaps(MAPS.tolist(), skeleton=FACE),
    ],
)
def test_a_list_says_neither_numpy_nor_jax(call):
    with pytest.raises(TypeError, match="list: give a numpy or a jax array"):
        call()
