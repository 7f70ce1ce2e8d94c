"""What figures wear: colours and cloth."""

import dataclasses
from typing import NamedTuple

import numpy as np

SKINS = np.array(
    [(241, 205, 177), (224, 172, 135), (198, 134, 96), (150, 97, 66), (105, 67, 48), (72, 46, 36)]
)
HAIRS = np.array([(35, 25, 22), (70, 45, 28), (120, 75, 38), (205, 165, 95), (160, 160, 160), (150, 60, 30)])


class Cloth(NamedTuple):
    """Two colours and how they alternate; `period` in body units."""

    colour: np.ndarray
    second: np.ndarray
    pattern: str
    period: float


@dataclasses.dataclass(frozen=True)
class Outfit:
    """Colours and cuts of one person; sleeve and leg lengths as fractions of the whole limb (0 to 2)."""

    skin: np.ndarray
    hair: np.ndarray
    hair_long: bool
    hair_line: float
    shirt: Cloth
    trousers: Cloth
    shoes: np.ndarray
    sleeve: float
    leg: float


def muted_colour(rng: np.random.Generator, *, chroma: float = 40.0) -> np.ndarray:
    """An RGB colour `[3]` as things have them: of any brightness, colourful by up to `chroma`."""
    hue = rng.normal(0, 1, 3)
    return np.clip(rng.uniform(25, 230) + rng.uniform(0.1, 1) * chroma * (hue - hue.mean()), 8, 248)


def _cloth(rng: np.random.Generator) -> Cloth:
    colour = muted_colour(rng, chroma=75)
    second = np.clip(colour + rng.choice([-1, 1]) * rng.uniform(35, 110, 3), 5, 250)
    pattern = rng.choice(["plain", "rings", "lines", "checks"], p=[0.55, 0.2, 0.12, 0.13])
    return Cloth(
        colour.astype(np.float32), second.astype(np.float32), str(pattern), float(rng.uniform(0.04, 0.1))
    )


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Skin, hair and clothes; shirt, trousers and skin differ in colour."""
    skin = np.clip(SKINS[rng.integers(len(SKINS))] + rng.normal(0, 6, 3), 10, 250).astype(np.float32)
    shirt = trousers = _cloth(rng)
    for _ in range(8):
        shirt, trousers = _cloth(rng), _cloth(rng)
        apart = (
            np.abs(a - b).sum() for a, b in ((shirt[0], trousers[0]), (shirt[0], skin), (trousers[0], skin))
        )
        if min(apart) > 120:
            break
    return Outfit(
        skin=skin,
        hair=np.clip(HAIRS[rng.integers(len(HAIRS))] + rng.normal(0, 8, 3), 5, 250).astype(np.float32),
        hair_long=bool(rng.random() < 0.35),
        hair_line=float(rng.uniform(0.1, 0.35)),
        shirt=shirt,
        trousers=trousers,
        shoes=rng.uniform(10, 250, 3).astype(np.float32),
        sleeve=float(rng.choice([0.0, 0.6, 1.2, 1.9], p=[0.12, 0.38, 0.1, 0.4])),
        leg=float(rng.choice([0.55, 1.25, 1.92], p=[0.25, 0.12, 0.63])),
    )


def weave(cloth: Cloth, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Colours `[..., 3]` of a cloth at distances along and across a limb, in body units."""
    if cloth.pattern == "plain":
        return cloth.colour
    half = 2 / cloth.period
    second = np.zeros(np.broadcast_shapes(along.shape, across.shape), bool)
    if cloth.pattern in ("rings", "checks"):
        second = second ^ (np.floor(along * half).astype(np.int32) & 1 == 1)
    if cloth.pattern in ("lines", "checks"):
        second = second ^ (np.floor(across * half).astype(np.int32) & 1 == 1)
    return np.where(second[..., None], cloth.second, cloth.colour)
