"""The report of a detector's run: one HTML file that opens anywhere, and the table printed at the end.

Shares are in 0..1 in `result`; what does not exist (None or NaN) is an en dash.
"""

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import report
from report import _number, _percent
from rich import box
from rich.markup import escape
from rich.table import Table

_COLUMNS = (("ap", "AP@0.5"), ("ap_11_point", "AP 11-point"), ("recall", "recall"))


def write_report(
    path: str | pathlib.Path,
    *,
    title: str,
    config: Mapping,
    result: Mapping,
    pictures: Iterable[tuple[str, bytes]] = (),
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Writes one self-contained HTML file; see `report.write_report`."""
    path = pathlib.Path(path)
    figures = [report._figure(caption, data) for caption, data in pictures]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(summarise(config, result))}</p>',
        _tiles(result),
        "<h2>Every class</h2>",
        _html_table(result),
        report._notes(notes),
        "<h2>Pictures</h2>" if figures else "",
        *figures,
        report._details("Configuration", config),
    ]
    path.write_text(report._page(title, "\n".join(part for part in body if part)), encoding="utf-8")
    return path


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
    return (
        f"{trained}{steps}, {_mining_words(config)}. On {images} it has never seen its mean average "
        f"precision is {_percent(result.get('map'))} (boxes that overlap the true ones by half)."
    )


def result_table(result: Mapping) -> Table:
    """The table a run ends with: one row a class, the means, and COCO's numbers below."""
    table = Table(title="Validation", caption=_caption(result), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("class", no_wrap=True)
    for _, heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("objects", justify="right", no_wrap=True)
    for name, row in result["per_class"].items():
        cells = (_percent(row.get(key)) for key, _ in _COLUMNS)
        table.add_row(escape(name), *cells, _number(row.get("count"), "{:,}"))
    table.add_section()
    means = (_percent(value) for value in _means(result))
    table.add_row("all classes", *means, _number(_objects(result), "{:,}"), style="bold")
    return table


def _caption(result: Mapping) -> str:
    speed, steps = _number(result.get("images_per_second"), "{:,.1f}"), _number(result.get("steps"), "{:,}")
    memory = _number(result.get("peak_memory_mb"), "{:,.0f}")
    coco = result.get("coco") or {}
    return "\n".join(
        (
            f"COCO AP {_number(coco.get('AP'))}, AP50 {_number(coco.get('AP50'))}, "
            f"AP75 {_number(coco.get('AP75'))}",
            f"{_percent(result.get('proposal_recall'))} of the objects have a proposal",
            f"{speed} images/s over {steps} steps, peak memory {memory} MB",
        )
    )


def _means(result: Mapping) -> list[float | None]:
    recalls = [row["recall"] for row in result["per_class"].values() if report._exists(row.get("recall"))]
    mean_recall = sum(recalls) / len(recalls) if recalls else None
    return [result.get("map"), result.get("map_11_point"), mean_recall]


def _objects(result: Mapping) -> int:
    return sum(row.get("count") or 0 for row in result["per_class"].values())


def _html_table(result: Mapping) -> str:
    headings = ("class", *(name for _, name in _COLUMNS), "objects")
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    rows = [
        report._row(name, [row.get(key) for key, _ in _COLUMNS], row.get("count"))
        for name, row in result["per_class"].items()
    ]
    foot = report._row("all classes", _means(result), _objects(result))
    body = "\n".join(rows)
    table = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>\n<tfoot>{foot}</tfoot></table>"
    return f'<div class="scroll">{table}</div>'


def _tiles(result: Mapping) -> str:
    coco = result.get("coco") or {}
    tiles = [
        ("mAP@0.5", _percent(result.get("map")), "mean over classes, VOC's area below the curve"),
        ("11-point", _percent(result.get("map_11_point")), "mAP@0.5 the way VOC 2007 measured it"),
        ("COCO AP", _number(coco.get("AP")), "mean over IoU 0.5 to 0.95, 0 to 1"),
        ("proposals", _percent(result.get("proposal_recall")), "of the objects have one; the ceiling"),
        ("speed", _number(result.get("images_per_second"), "{:,.1f}"), "images a second in training"),
        ("memory", _number(result.get("peak_memory_mb"), "{:,.0f}"), "MB at the peak, the whole process"),
    ]
    parts = [
        f'<div><dt>{heading}</dt><dd class="value">{value}</dd><dd class="what">{what}</dd></div>'
        for heading, value, what in tiles
    ]
    return '<dl class="tiles">\n' + "\n".join(parts) + "\n</dl>"


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
    words = _WORDS.get(config.get("mining"), "learning from the regions that {mining} keeps")
    return words.format(k=config.get("k"), rounds=config.get("rounds"), mining=config.get("mining"))
