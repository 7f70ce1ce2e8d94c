"""How far a score of few subjects may be from that of many: half of a 95 % interval, and the words for it.

The subjects, or images, are what is drawn at random; what is on one of them comes together.
"""

import math
from collections.abc import Callable

import numpy as np

# Below it a score says little of others.
FEW = 100
_NORMAL = 1.96
_RESAMPLES = 100


def share_half_width(hits: np.ndarray, totals: np.ndarray) -> float | None:
    """Of the share sum(hits) / sum(totals), over subjects that have `totals` [N] each.

    half width = 1.96 sqrt(N / (N - 1) sum((hits - share totals)^2)) / sum(totals), the ratio estimator's
    (Cochran, Sampling Techniques, section 2.11). None for fewer than two subjects that have any.

    >>> round(share_half_width(np.array([0, 1] * 50), np.ones(100)), 3)
    0.098
    """
    some = totals > 0
    hits, totals = np.asarray(hits, float)[some], np.asarray(totals, float)[some]
    if len(totals) < 2:
        return None
    apart = hits - hits.sum() / totals.sum() * totals
    return float(_NORMAL * math.sqrt(len(totals) / (len(totals) - 1) * (apart**2).sum()) / totals.sum())


def bootstrap_half_width(score: Callable[[np.ndarray], float], length: int) -> float | None:
    """Of `score(rows)` over images 0 .. length - 1: 1.96 standard deviations over resamples of them.

    None for fewer than two images, and where no resample has a score (Efron, The Bootstrap, 1979).
    """
    if length < 2:
        return None
    rng = np.random.default_rng(0)
    scores = np.array([score(rng.integers(0, length, length)) for _ in range(_RESAMPLES)])
    scores = scores[np.isfinite(scores)]
    return float(_NORMAL * scores.std(ddof=1)) if len(scores) > 1 else None


def note_few(count: int, what: str, metric: str, half_width: float | None) -> list[str]:
    """A sentence where few were scored, none otherwise.

    >>> note_few(57, "subjects", "PCK@0.1", 0.0612)
    ['only 57 subjects were scored: by their spread PCK@0.1 is known to ± 6.1 points (95 %), and smaller
    differences mean nothing']
    >>> note_few(1, "images", "mAP@0.5", None)
    ['only 1 of the images was scored: mAP@0.5 says nothing of others']
    """
    if count >= FEW:
        return []
    if half_width is None:
        who = f"1 of the {what} was" if count == 1 else f"{count} {what} were"
        return [f"only {who} scored: {metric} says nothing of others"]
    known = f"by their spread {metric} is known to ± {100 * half_width:.1f} points (95 %)"
    return [f"only {count} {what} were scored: {known}, and smaller differences mean nothing"]
