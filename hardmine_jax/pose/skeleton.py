"""Which keypoints a pose has: names, left-right pairs, OKS sigmas, bones. Owned by the dataset's file."""

import dataclasses
from collections import Counter
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A fixed set of K keypoints; hashable, so it can be a static argument of a jitted function.

    Args:
      names: K different names, in the order of the keypoint axis everywhere.
      flip_pairs: pairs of keypoint indices that change places in a mirror; a keypoint in no pair stays.
      sigmas: K positive OKS constants, as in COCO (0.026 nose ... 0.107 hip).
      edges: pairs of keypoint indices joined by a bone; for drawing only.

    Raises:
      ValueError: on repeated names, a wrong number of sigmas, a sigma <= 0, an index that is no keypoint,
        or a keypoint in two flip pairs.

    >>> hand = Skeleton(("wrist", "left", "right"), ((1, 2),), (0.05, 0.05, 0.05), ((0, 1), (0, 2)))
    >>> hand.num_keypoints, hand.flip_permutation
    (3, (0, 2, 1))
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        # Skeletons read from JSON come as lists, which would not hash.
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "flip_pairs", _pairs("flip pair", self.flip_pairs, self.names))
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        object.__setattr__(self, "edges", _pairs("edge", self.edges, self.names))
        repeated = sorted(name for name, times in Counter(self.names).items() if times > 1)
        if repeated:
            raise ValueError(f"keypoint names {repeated} appear twice: every keypoint needs its own name")
        if len(self.sigmas) != len(self.names):
            raise ValueError(f"{len(self.sigmas)} sigmas for {len(self.names)} keypoints: give one each")
        if not all(0 < sigma < float("inf") for sigma in self.sigmas):
            raise ValueError(f"sigmas {self.sigmas} must all be positive and finite")
        paired = Counter(index for pair in self.flip_pairs for index in pair)
        twice = sorted(self.names[index] for index, times in paired.items() if times > 1)
        if twice:
            raise ValueError(f"keypoints {twice} stand twice in flip_pairs {self.flip_pairs}")

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.names)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """Which keypoint each place holds after a mirroring; its own inverse."""
        permutation = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            permutation[left], permutation[right] = right, left
        return tuple(permutation)


def _pairs(what: str, pairs: Iterable[Iterable[int]], names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    checked = []
    for pair in pairs:
        pair = tuple(int(index) for index in pair)
        if len(pair) != 2 or not all(0 <= index < len(names) for index in pair):
            raise ValueError(f"{what} {pair} must be two indices in 0 .. {len(names) - 1}")
        checked.append(pair)
    return tuple(checked)
