"""What seeds say of variants: means, 95 % intervals by Student's distribution, differences seed by seed.

A line is a dictionary with `variant`, `seed` and the scores, as shares.
"""

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table


def table(
    lines: Sequence[dict],
    variants: Sequence[str],
    scores: dict[str, str],
    *,
    reference: str,
    title: str,
    more: dict[str, Callable[[list[dict]], str]] | None = None,
) -> Table:
    """A row for each variant, in percent.

    Args:
      lines: of all variants and seeds.
      variants: in the order of the rows.
      scores: the names that the lines have, and their headings.
      reference: the variant that the others are compared with, seed by seed.
      title: what is measured; what the cells are is added.
      more: further headings, and a cell from a variant's lines.
    """
    columns = [column for heading in scores.values() for column in (heading, f"minus {reference}")]
    more = more or {}
    made = Table("", "seeds", *columns, *more, title=f"{title}: mean and its 95 % interval, %")

    def found(variant: str, score: str) -> dict[int, float]:
        return {line["seed"]: 100 * line[score] for line in lines if line["variant"] == variant}

    for variant in variants:
        cells: list[str] = []
        for score in scores:
            values = found(variant, score)
            against = [] if variant == reference else paired(values, found(reference, score))
            cells += [written(list(values.values())), written(against, "+")]
        own = [line for line in lines if line["variant"] == variant]
        made.add_row(
            variant, str(len({line["seed"] for line in own})), *cells, *(cell(own) for cell in more.values())
        )
    return made


def written(values: Sequence[float], sign: str = "") -> str:
    """
    >>> written([50.0, 52.0]), written([1.0], "+"), written([])
    ('51.00 ± 12.71', '+1.00', '')
    """
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:{sign}.2f}" + ("" if half is None else f" ± {half:.2f}")


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's distribution.

    >>> round(t_quantile(1), 3), round(t_quantile(4), 3), round(t_quantile(1000), 3)
    (12.706, 2.776, 1.962)
    """
    # With t = sqrt(degrees) tan(angle) the density is a power of the cosine.
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(degrees) * np.tan(np.interp(0.95, area / area[-1], angles)))


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % interval, which one value does not have.

    >>> interval([0.5])
    (0.5, None)
    """
    if len(values) < 2:
        return float(np.mean(values)), None
    half = t_quantile(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def paired(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """Differences at the seeds that both have, in their order.

    >>> paired({0: 3.0, 1: 5.0, 2: 7.0}, {2: 4.0, 0: 1.0})
    [2.0, 3.0]
    """
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
