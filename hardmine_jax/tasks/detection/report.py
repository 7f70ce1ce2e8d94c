"""The report of a detector's run: one HTML file that opens anywhere, and the table printed at the end.

Shares are in 0..1 in `result`; what does not exist (None or NaN) is an en dash.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from hardmine_jax.data.problems import printable
from hardmine_jax.tasks import page
from hardmine_jax.tasks.page import exists, number, percent

_COLUMNS = (("ap", "AP@0.5"), ("ap_11_point", "AP 11-point"), ("recall", "recall"))


def write_report(
    path: str | pathlib.Path,
    *,
    title: str,
    config: Mapping,
    result: Mapping,
    pictures: Iterable[tuple[str, bytes | page.Panels]] = (),
    notes: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> pathlib.Path:
    """Writes one self-contained HTML file; see `report.write_report`."""
    body = [
        page.lead(summarise(config, result)), _tiles(result), page.notes(notes), "<h2>Every class</h2>",
        _html_table(result), page.facts(facts), *page.figures(pictures),
        page.details("Configuration", config),
    ]  # fmt: skip
    return page.write_page(path, title, body)


def summarise(config: Mapping, result: Mapping) -> str:
    """What was trained, and how it did, in plain words.

    >>> config = {"model": "laptop", "dataset": "voc", "mining": "ohem", "k": 64}
    >>> print(summarise(config, {"steps": 900, "map": 0.823, "images": 87}))
    The model laptop was trained on the dataset voc for 900 steps, learning from the 64 hardest regions of
    each image (ohem). On 87 images it has never seen its mean average precision is 82.3 % (boxes that
    overlap the true ones by half).
    """
    trained = f"The model {config.get('model')} was trained on the dataset {config.get('dataset')}"
    steps = f" for {result['steps']:,} steps" if result.get("steps") is not None else ""
    images = f"{result['images']:,} images" if result.get("images") is not None else "images"
    seen = result.get("scored_on", f"{images} it has never seen")
    return (
        f"{trained}{steps}, {_mining_words(config)}. On {seen} its mean average "
        f"precision is {percent(result.get('map'))} (boxes that overlap the true ones by half)."
    )


def result_table(result: Mapping) -> Table:
    """The table a run ends with: one row a class, the means, and COCO's numbers below."""
    title = page.table_title(result)
    table = Table(title=title, caption=_caption(result), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("class", no_wrap=True)
    for _, heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("objects", justify="right", no_wrap=True)
    for name, row in result["per_class"].items():
        cells = (percent(row.get(key)) for key, _ in _COLUMNS)
        table.add_row(escape(printable(name)), *cells, number(row.get("count"), "{:,}"))
    table.add_section()
    means = (percent(value) for value in _means(result))
    table.add_row("all classes", *means, number(_objects(result), "{:,}"), style="bold")
    return table


def _caption(result: Mapping) -> str:
    coco = result.get("coco") or {}
    lines = [
        f"COCO AP {number(coco.get('AP'))}, AP50 {number(coco.get('AP50'))}, AP75 {number(coco.get('AP75'))}",
        f"{percent(result.get('proposal_recall'))} of the objects have a proposal",
    ]
    if "evaluation" not in result:
        memory = number(result.get("peak_memory_mb"), "{:,.0f}")
        lines.append(f"{page.speed_line(result)}, peak memory {memory} MB")
    return "\n".join(lines)


def _means(result: Mapping) -> list[float | None]:
    recalls = [row["recall"] for row in result["per_class"].values() if exists(row.get("recall"))]
    mean_recall = sum(recalls) / len(recalls) if recalls else None
    return [result.get("map"), result.get("map_11_point"), mean_recall]


def _objects(result: Mapping) -> int:
    return sum(row.get("count") or 0 for row in result["per_class"].values())


def _html_table(result: Mapping) -> str:
    rows = [
        page.Row(name, [row.get(key) for key, _ in _COLUMNS], row.get("count"))
        for name, row in result["per_class"].items()
    ]
    total = page.Row("all classes", _means(result), _objects(result))
    return page.table(("class", *(name for _, name in _COLUMNS), "objects"), rows, total)


def _tiles(result: Mapping) -> str:
    coco = result.get("coco") or {}
    tiles = [
        ("mAP@0.5", percent(result.get("map")), "mean over classes, VOC's area below the curve"),
        ("11-point", percent(result.get("map_11_point")), "mAP@0.5 the way VOC 2007 measured it"),
        ("COCO AP", number(coco.get("AP")), "mean over IoU 0.5 to 0.95, 0 to 1"),
        ("proposals", percent(result.get("proposal_recall")), "of the objects have one; the ceiling"),
    ]
    if "evaluation" not in result:
        speed, memory = (
            number(result.get(key), shown)
            for key, shown in (("images_per_second", "{:,.1f}"), ("peak_memory_mb", "{:,.0f}"))
        )
        tiles += [
            ("speed", speed, f"images a second in training{page.chip_share(result, '; ')}"),
            ("memory", memory, "MB at the peak, the whole process"),
        ]
    return page.tiles(tiles)


_WORDS = {
    "ohem": "learning from the {k} hardest regions of each image (ohem)",
    "masked": "learning from the {k} hardest regions of each image, the others' losses set to zero (masked)",
    "random": "learning from {k} regions of each image drawn at random, a quarter of them objects",
    "all": "learning from all regions alike",
    "focal": "learning from all regions, the easy ones weighted down (focal loss)",
    "hard_negatives": "learning from the objects and three times as many of the hardest backgrounds",
    "bootstrap": "learning from objects and a pool of false positives, in {rounds} rounds (bootstrap)",
}


def _mining_words(config: Mapping) -> str:
    words = _WORDS.get(str(config.get("mining")), "learning from the regions that {mining} keeps")
    return words.format(k=config.get("k"), rounds=config.get("rounds"), mining=config.get("mining"))
