"""Articulated human figures, ray-cast part by part into a picture, a depth map and a map of parts.

Body space: unit is the standing height, x to the left hand of a person who faces the camera (to the right
of the picture), y down, z towards the camera; origin between the hips. Picture space: pixels `(x, y)`,
centre of the first pixel 0.0, z towards the camera in pixels. Keypoints are in COCO's order.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hardmine_jax.data.pose.outfits import Cloth, Outfit, weave

NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(5)
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_ELBOW, RIGHT_ELBOW, LEFT_WRIST, RIGHT_WRIST = range(5, 11)
LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE, LEFT_ANKLE, RIGHT_ANKLE = range(11, 17)
PARTS = (
    "background", "occluder", "hair", "head", "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "neck", "chest", "belly", "left_shoulder", "right_shoulder", "left_hip", "right_hip",
    "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_hand", "right_hand",
    "left_thigh", "right_thigh", "left_shin", "right_shin", "left_foot", "right_foot",
)  # fmt: skip
PART = {name: number for number, name in enumerate(PARTS)}
# A joint shows when one of these parts is what the camera sees at its pixel.
OWNERS: tuple[tuple[str, ...], ...] = (
    ("nose",), ("left_eye",), ("right_eye",), ("left_ear",), ("right_ear",),
    ("left_shoulder", "left_upper_arm"), ("right_shoulder", "right_upper_arm"),
    ("left_upper_arm", "left_forearm"), ("right_upper_arm", "right_forearm"),
    ("left_forearm", "left_hand"), ("right_forearm", "right_hand"),
    ("left_hip", "left_thigh"), ("right_hip", "right_thigh"),
    ("left_thigh", "left_shin"), ("right_thigh", "right_shin"),
    ("left_shin", "left_foot"), ("right_shin", "right_foot"),
)  # fmt: skip


class Pose(NamedTuple):
    """Angles in degrees, `[left, right]`: 0 is standing with hanging arms; `lean` is the torso's, forward."""

    hip: tuple[float, float]
    spread: tuple[float, float]
    knee: tuple[float, float]
    shoulder: tuple[float, float]
    raised: tuple[float, float]
    elbow: tuple[float, float]
    lean: float


# How often; lean's mean and deviation; each angle's (mean of the leading side, of the other, deviation).
# fmt: off
_POSES: dict[str, tuple[float, tuple[float, float], tuple[tuple[float, float, float], ...]]] = {
    # hip, spread, knee, shoulder, raised, elbow
    "standing": (0.2, (0, 5), ((0, 0, 8), (6, 6, 4), (5, 5, 5), (5, 5, 18), (14, 14, 9), (20, 20, 18))),
    "walking": (
        0.2, (5, 5), ((28, -18, 10), (4, 4, 3), (15, 35, 12), (-25, 28, 14), (10, 10, 6), (35, 35, 18))
    ),
    "arms_up": (0.14, (0, 7), ((0, 5, 12), (10, 10, 7), (8, 8, 8), (5, 5, 18), (145, 145, 22), (35, 35, 28))),
    "wide": (0.14, (0, 7), ((0, 0, 10), (24, 24, 9), (8, 8, 8), (5, 5, 18), (80, 80, 24), (40, 40, 35))),
    "crouching": (
        0.1, (25, 12), ((95, 85, 18), (14, 14, 9), (110, 110, 18), (50, 50, 28), (15, 15, 10), (50, 50, 28))
    ),
    "sitting": (
        0.08, (-3, 8), ((85, 80, 12), (10, 10, 8), (80, 80, 18), (28, 28, 24), (14, 14, 10), (50, 50, 28))
    ),
    "running": (
        0.08, (12, 7), ((55, -22, 14), (4, 4, 3), (65, 50, 18), (-40, 45, 16), (10, 10, 6), (85, 85, 16))
    ),
    "bending": (
        0.06, (55, 14), ((10, 5, 10), (9, 9, 5), (15, 15, 12), (75, 75, 28), (14, 14, 10), (20, 20, 18))
    ),
}


def sample_pose(rng: np.random.Generator) -> Pose:
    """A pose of one of the kinds above, every joint varied on its own."""
    names = list(_POSES)
    _, lean, joints = _POSES[names[rng.choice(len(names), p=[_POSES[name][0] for name in names])]]
    swap = rng.random() < 0.5
    noise = rng.normal(size=(6, 2))
    angles = []
    for (left, right, width), deviation in zip(joints, noise, strict=True):
        left, right = (right, left) if swap else (left, right)
        angles.append((left + width * deviation[0], right + width * deviation[1]))
    hip, spread, knee, shoulder, raised, elbow = angles
    if rng.random() < 0.2:  # One arm does something else, as arms do.
        arm, angle = rng.integers(2), rng.uniform(20, 165)
        raised = (raised[0], angle) if arm else (angle, raised[1])
    bent = [tuple(min(max(value, 0.0), 140.0) for value in pair) for pair in (knee, elbow)]
    return Pose(hip, spread, bent[0], shoulder, raised, bent[1], rng.normal(*lean))


def sample_view(rng: np.random.Generator) -> np.ndarray:
    """A rotation `[3, 3]` from body to picture: front, back or side; upright, lying or upside down."""
    kind = rng.random()
    if kind < 0.55:
        yaw = rng.normal(0, 30)
    elif kind < 0.8:
        yaw = rng.normal(180, 28)
    else:
        yaw = rng.choice([-1, 1]) * rng.uniform(45, 110)
    kind = rng.random()
    if kind < 0.84:
        roll = rng.normal(0, 14)
    elif kind < 0.95:
        roll = rng.choice([-1, 1]) * rng.normal(85, 14)
    else:
        roll = rng.normal(180, 20)
    return _turn_z(roll) @ _turn_x(rng.normal(0, 10)) @ _turn_y(yaw)


def _turn_x(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([(1, 0, 0), (0, c, -s), (0, s, c)])


def _turn_y(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([(c, 0, s), (0, 1, 0), (-s, 0, c)])


def _turn_z(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([(c, -s, 0), (s, c, 0), (0, 0, 1)])


class _Limb(NamedTuple):
    """A cone with round ends `[2,3]` and radii at both; `cloth` (None: bare) reaches from 0 to `covered`.

    Places on a whole limb run from 0 (shoulder) over 1 (elbow) to 2 (wrist); this piece begins at `start`.
    """

    part: str
    ends: np.ndarray
    radii: tuple[float, float]
    start: float
    cloth: Cloth | None
    covered: float

    @property
    def reach(self) -> float:
        return float(np.linalg.norm(self.ends[1] - self.ends[0]))


class _Ellipsoid(NamedTuple):
    """Half axes `radii` along the columns of `frame`; `paint`: a colour, or (x, y, z) there -> colours."""

    part: str
    centre: np.ndarray
    frame: np.ndarray
    radii: np.ndarray
    paint: np.ndarray | Callable[..., np.ndarray]


class Figure(NamedTuple):
    """A posed body in body space: `keypoints [17,3]`, and the solids that it is drawn from."""

    keypoints: np.ndarray
    limbs: tuple[_Limb, ...]
    ellipsoids: tuple[_Ellipsoid, ...]
    skin: np.ndarray


_DOWN = np.array([0.0, 1.0, 0.0])
# The left hand is at positive x.
_SIDES = (("left", 1.0), ("right", -1.0))


class _Proportions(NamedTuple):
    torso: float
    arm: float
    leg: float
    shoulders: float
    hips: float
    girth: float
    head: float


def _sample_proportions(rng: np.random.Generator) -> _Proportions:
    return _Proportions(
        torso=rng.normal(0.30, 0.015),
        arm=rng.normal(0.165, 0.01),
        leg=rng.normal(0.235, 0.013),
        shoulders=rng.normal(0.115, 0.009),
        hips=rng.normal(0.068, 0.006),
        girth=float(np.exp(rng.normal(0.08, 0.13))),
        head=rng.normal(0.078, 0.005),
    )


def pose_figure(rng: np.random.Generator, pose: Pose, outfit: Outfit) -> Figure:
    """Forward kinematics: a body of random proportions in `pose`, dressed in `outfit`."""
    body = _sample_proportions(rng)
    torso = _turn_y(rng.normal(0, 12)) @ _turn_x(-pose.lean) @ _turn_z(rng.normal(0, 6))
    neck = -body.torso * torso @ _DOWN
    keypoints = np.zeros((17, 3))
    limbs: list[_Limb] = []
    solids = _trunk(body, torso, neck, outfit)
    for side in (0, 1):
        for first, joints, bones, end in (
            (LEFT_SHOULDER, *_arm(rng, pose, body, side, torso, neck, outfit)),
            (LEFT_HIP, *_leg(rng, pose, body, side, outfit)),
        ):
            keypoints[[first + side, first + side + 2, first + side + 4]] = joints
            limbs += bones
            solids.append(end)
    head = torso @ _turn_y(rng.normal(0, 18)) @ _turn_x(rng.normal(0, 8))
    top = neck - 0.055 * (torso @ _DOWN) - 0.95 * body.head * (head @ _DOWN)
    limbs.append(_Limb("neck", np.stack([neck + 0.01 * torso @ _DOWN, top]), (0.036, 0.034), 0, None, 0))
    keypoints[:5], features = _head(body.head, head, top, outfit)
    return Figure(keypoints, tuple(limbs), tuple(solids + features), outfit.skin)


def _arm(
    rng: np.random.Generator,
    pose: Pose,
    body: _Proportions,
    side: int,
    torso: np.ndarray,
    neck: np.ndarray,
    outfit: Outfit,
) -> tuple[tuple[np.ndarray, ...], list[_Limb], _Ellipsoid]:
    name, sign = _SIDES[side]
    root = neck + torso @ np.array([0, 0.035, 0])
    shoulder = neck + torso @ np.array([sign * body.shoulders, 0.012, 0.0])
    upper = torso @ _turn_z(-sign * pose.raised[side]) @ _turn_x(pose.shoulder[side])
    upper = upper @ _turn_y(rng.normal(0, 35))
    lower = upper @ _turn_x(pose.elbow[side])
    elbow = shoulder + body.arm * upper @ _DOWN
    wrist = elbow + 0.95 * body.arm * lower @ _DOWN
    bones = [
        _limb(f"{name}_shoulder", root, shoulder, (0.045, 0.04), 0, outfit.shirt, np.inf, body.girth),
        _limb(
            f"{name}_upper_arm", shoulder, elbow, (0.038, 0.03), 0, outfit.shirt, outfit.sleeve, body.girth
        ),
        _limb(f"{name}_forearm", elbow, wrist, (0.03, 0.021), 1, outfit.shirt, outfit.sleeve, body.girth),
    ]
    radii = np.array([0.026, 0.044, 0.018])
    hand = _Ellipsoid(f"{name}_hand", wrist + 0.04 * lower @ _DOWN, lower, radii, outfit.skin)
    return (shoulder, elbow, wrist), bones, hand


def _leg(
    rng: np.random.Generator, pose: Pose, body: _Proportions, side: int, outfit: Outfit
) -> tuple[tuple[np.ndarray, ...], list[_Limb], _Ellipsoid]:
    name, sign = _SIDES[side]
    root, hip = np.array([0.0, -0.01, 0.0]), np.array([sign * body.hips, 0.0, 0.0])
    thigh = _turn_z(-sign * pose.spread[side]) @ _turn_x(pose.hip[side]) @ _turn_y(sign * rng.normal(8, 8))
    shin = thigh @ _turn_x(-pose.knee[side])
    knee = hip + body.leg * thigh @ _DOWN
    ankle = knee + body.leg * shin @ _DOWN
    bones = [
        _limb(f"{name}_hip", root, hip, (0.062, 0.066), 0, outfit.trousers, np.inf, body.girth),
        _limb(f"{name}_thigh", hip, knee, (0.06, 0.043), 0, outfit.trousers, outfit.leg, body.girth),
        _limb(f"{name}_shin", knee, ankle, (0.042, 0.027), 1, outfit.trousers, outfit.leg, body.girth),
    ]
    centre, radii = ankle + shin @ np.array([0, 0.022, 0.045]), np.array([0.032, 0.026, 0.078])
    return (hip, knee, ankle), bones, _Ellipsoid(f"{name}_foot", centre, shin, radii, outfit.shoes)


def _limb(
    part: str,
    first: np.ndarray,
    last: np.ndarray,
    radii: tuple[float, float],
    start: float,
    cloth: Cloth,
    covered: float,
    girth: float,
) -> _Limb:
    return _Limb(part, np.stack([first, last]), (radii[0] * girth, radii[1] * girth), start, cloth, covered)


def _trunk(body: _Proportions, torso: np.ndarray, neck: np.ndarray, outfit: Outfit) -> list[_Ellipsoid]:
    # Only the front has a placket and an open collar: they tell left from right where the face does not.
    buttons = 255.0 - outfit.shirt.colour

    def belly(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        colours = weave(outfit.shirt, y, x)
        return np.where(((z > 0) & (np.abs(x) < 0.011))[..., None], buttons, colours)

    def chest(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        collar = (z > 0) & (y < -0.04) & (np.abs(x) < 0.05 - 0.65 * np.maximum(y + 0.115, 0.0))
        return np.where(collar[..., None], outfit.skin, belly(x, y, z))

    upper = np.array([0.95 * body.shoulders + 0.01, 0.115, 0.07 * body.girth])
    lower = np.array([0.1 * body.girth, 0.11, 0.07 * body.girth])
    return [
        _Ellipsoid("chest", 0.68 * neck, torso, upper, chest),
        _Ellipsoid("belly", 0.34 * neck, torso, lower, belly),
    ]


def _head(
    size: float, head: np.ndarray, centre: np.ndarray, outfit: Outfit
) -> tuple[np.ndarray, list[_Ellipsoid]]:
    def face(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = np.abs(x) / size, y / size, z / size
        mouth = (z > 0.3) & (x < 0.3) & (np.abs(y - 0.55) < 0.085)
        hair = (0.62 * y + 0.75 * z < -outfit.hair_line) | (
            (z > 0.3) & (np.abs(x - 0.36) < 0.2) & (np.abs(y + 0.36) < 0.06)
        )
        colours = np.where(mouth[..., None], np.array((150, 45, 50), np.float32), outfit.skin)
        return np.where(hair[..., None], outfit.hair, colours)

    def eye(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(x * x + y * y < (0.1 * size) ** 2, np.float32(20), np.float32(250))[..., None]

    local = np.array(
        [(0, 0.12, 1.08), (0.36, -0.14, 0.84), (-0.36, -0.14, 0.84), (0.99, 0, 0), (-0.99, 0, 0)]
    )
    points = centre + size * local @ head.T
    ball, ear = np.array([0.21, 0.17, 0.14]), np.array([0.14, 0.3, 0.24])
    parts = [
        _Ellipsoid("head", centre, head, size * np.array([0.86, 1.12, 0.95]), face),
        _Ellipsoid(
            "nose", points[0], head, size * np.array([0.14, 0.24, 0.17]), outfit.skin * np.float32(0.82)
        ),
        _Ellipsoid("left_eye", points[1], head, size * ball, eye),
        _Ellipsoid("right_eye", points[2], head, size * ball, eye),
        _Ellipsoid("left_ear", points[3], head, size * ear, outfit.skin * np.float32(0.85)),
        _Ellipsoid("right_ear", points[4], head, size * ear, outfit.skin * np.float32(0.85)),
    ]
    if outfit.hair_long:
        back = centre + size * head @ np.array([0.0, 0.45, -0.5])
        parts.append(_Ellipsoid("hair", back, head, size * np.array([0.95, 1.35, 0.55]), outfit.hair))
    return points, parts
