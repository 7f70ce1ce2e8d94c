import numpy as np
import pytest


@pytest.fixture(scope="session")
def heaps():
    """`(number, seed=0) -> boxes float32 [number, 4]` with whole numbers for sides, in heaps of about ten."""

    def make(number: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        centres = rng.uniform(0, 300, (max(1, number // 10), 2))
        corner = centres[rng.integers(len(centres), size=number)] + rng.normal(0, 4, (number, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(30, 50, (number, 2))], axis=-1)
        return boxes.round().astype(np.float32)

    return make
