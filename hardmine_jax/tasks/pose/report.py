"""The report of a run: one HTML file that opens anywhere, and the table printed at the end.

Shares are in 0..1 in `result` and printed as percent; what does not exist (None or NaN) is an en dash.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from hardmine_jax.data.problems import printable
from hardmine_jax.tasks import page
from hardmine_jax.tasks.page import exists, number, percent

_COLUMNS = (
    ("pck", "PCK all"),
    ("pck_visible", "PCK visible"),
    ("pck_occluded", "PCK occluded"),
    ("unit_rate", "mined"),
)


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
    """Writes one self-contained HTML file.

    Args:
      path: the file to write, for example `workdir / "report.html"`.
      title: the page's heading.
      config: whatever made the run; shown as JSON at the end.
      result: what `result.json` holds.
      pictures: `(caption, PNG bytes or rows of them)` in the order to show them; see `page.figures`.
      notes: sentences for a list below the table, for example how many records were skipped and why.
      facts: what `facts.run_facts` gives.

    Returns:
      The path.
    """
    body = [
        page.lead(summarise(config, result)), *map(page.lead, protocol_lines(result)), _tiles(result),
        page.notes(notes), "<h2>Every joint</h2>", _html_table(result), page.facts(facts),
        *page.figures(pictures), page.details("Configuration", config),
    ]  # fmt: skip
    return page.write_page(path, title, body)


def summarise(config: Mapping, result: Mapping) -> str:
    """What was trained, and how it did, in plain words.

    >>> config = {"model": "hrnet", "dataset": "lspet", "mining": "ohkm", "k": 8}
    >>> print(summarise(config, {"steps": 1200, "pck": 0.461, "mean_pose_pck": 0.062}))
    The model hrnet was trained on the dataset lspet for 1,200 steps, learning from the 8 hardest joints of
    each image (ohkm). On images it has never seen it puts 46.1 % of the joints within a tenth of the
    subject's size (PCK@0.1); guessing the average pose for all of them gets 6.2 %.
    """
    trained = f"The model {config.get('model')} was trained on the dataset {config.get('dataset')}"
    steps = f" for {result['steps']:,} steps" if result.get("steps") is not None else ""
    seen = result.get("scored_on", "images it has never seen")
    hits = f"On {seen} it puts {percent(result.get('pck'))} of the joints within a tenth of"
    baseline = ""
    if exists(result.get("mean_pose_pck")):
        baseline = f"; guessing the average pose for all of them gets {percent(result['mean_pose_pck'])}"
    return f"{trained}{steps}, {_mining_words(config)}. {hits} the subject's size (PCK@0.1){baseline}."


def result_table(result: Mapping) -> Table:
    """The table a run ends with: one row a joint, one for all, AP and the mean-pose baseline below."""
    title = page.table_title(result)
    table = Table(title=title, caption=_caption(result), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("joint", no_wrap=True)
    for _, heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in result["per_joint"].items():
        table.add_row(escape(printable(name)), *(percent(row.get(key)) for key, _ in _COLUMNS))
    table.add_section()
    table.add_row("all joints", *(percent(value) for value in _totals(result)), style="bold")
    return table


def _caption(result: Mapping) -> str:
    lines = [f"PCK@0.2 {percent(result.get('pck@0.2'))}, OKS AP {number(result.get('ap'))}"]
    if exists(result.get("mean_pose_pck")):
        lines.append(f"mean-pose baseline: PCK {percent(result['mean_pose_pck'])}")
    lines += protocol_lines(result)
    if "evaluation" not in result:
        lines.append(page.speed_line(result))
    return "\n".join(lines)


def protocol_lines(result: Mapping) -> list[str]:
    """What the published procedures measured, where they were followed.

    >>> protocol_lines({"detections": {"ap": 0.744, "ap_medium": 0.7, "ap_large": 0.8, "ar": 0.798}})
    ["on the detector's boxes: AP 0.744, medium 0.700, large 0.800, AR 0.798"]
    """
    lines = []
    if result.get("pckh"):
        pckh = result["pckh"]
        lines.append(f"PCKh@0.5 {percent(pckh.get('pckh@0.5'))}, @0.1 {percent(pckh.get('pckh@0.1'))}")
    if result.get("detections"):
        found = result["detections"]
        named = {"AP": "ap", "medium": "ap_medium", "large": "ap_large", "AR": "ar"}
        scores = ", ".join(f"{name} {number(found.get(key))}" for name, key in named.items())
        lines.append(f"on the detector's boxes: {scores}")
    return lines


def _totals(result: Mapping) -> list[float | None]:
    rates = [row["unit_rate"] for row in result["per_joint"].values() if exists(row.get("unit_rate"))]
    mean_rate = sum(rates) / len(rates) if rates else None
    return [result.get("pck"), result.get("pck_visible"), result.get("pck_occluded"), mean_rate]


def _html_table(result: Mapping) -> str:
    rows = [
        page.Row(name.replace("_", " "), [row.get(key) for key, _ in _COLUMNS], row.get("count"))
        for name, row in result["per_joint"].items()
    ]
    counts = [row["count"] for row in result["per_joint"].values() if exists(row.get("count"))]
    total = page.Row("all joints", _totals(result), sum(counts) if counts else None)
    return page.table(("joint", *(name for _, name in _COLUMNS), "labelled"), rows, total)


def _tiles(result: Mapping) -> str:
    tiles = [
        ("PCK@0.1", percent(result.get("pck")), "of joints within a tenth of the subject"),
        ("PCK@0.2", percent(result.get("pck@0.2")), "of joints within a fifth of the subject"),
        ("OKS AP", number(result.get("ap")), "COCO average precision, 0 to 1"),
    ]
    if exists(result.get("mean_pose_pck")):
        tiles.append(("mean pose", percent(result["mean_pose_pck"]), "PCK@0.1 of guessing the average pose"))
    if "evaluation" not in result:
        speed = number(result.get("images_per_second"), "{:,.0f}")
        words = f"images a second in training{page.chip_share(result, '; ')}"
        tiles.append(("speed", speed, words))
    return page.tiles(tiles)


def _mining_words(config: Mapping) -> str:
    kind, k = config.get("mining"), config.get("k")
    if kind == "none":
        return "learning from all joints alike"
    at_first = "" if config.get("k_schedule", "constant") == "constant" else "all joints at first, then from "
    easy = f", and with weight {config['easy_weight']} from all" if config.get("easy_weight") else ""
    if kind == "sleap":
        return "learning from all joints, and more from those that are hard over the batch (sleap)"
    if kind == "ohkm" and config.get("mining_over") == "batch":
        return f"learning from {at_first}the hardest joints of each batch, {k} an image (ohkm){easy}"
    if kind == "ohkm":
        return f"learning from {at_first}the {k} hardest joints of each image (ohkm){easy}"
    if kind == "random":
        return f"learning from {at_first}{k} joints of each image drawn at random{easy}"
    return f"learning from {at_first}the joints that {kind} mining keeps{easy}"
