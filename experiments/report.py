"""The report of a run: one HTML file that opens anywhere, and the table printed at the end.

Shares are in 0..1 in `result` and printed as percent; what does not exist (None or NaN) is an en dash.
The page carries its pictures and its style within itself and forbids everything else by its security policy.
"""

import base64
import html
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

_DASH = "–"
_COLUMNS = (
    ("pck", "PCK all"),
    ("pck_visible", "PCK visible"),
    ("pck_occluded", "PCK occluded"),
    ("unit_rate", "mined"),
)
_CSS = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #d9e0e7; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink);
       font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0 0 .75rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.3rem; }
.lead { margin: 0; max-width: 60rem; font-size: 1.15rem; }
.tiles div, .scroll, figure, details { border: 1px solid var(--line); border-radius: .6rem;
                                      background: #fff; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
         gap: .9rem; margin: 1.6rem 0 0; }
.tiles div { padding: .9rem 1.1rem; }
.tiles dt { color: var(--soft); font-weight: 600; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.9rem; font-weight: 700; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles .what { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem 1rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th:not(:first-child) { width: 16%; }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); font-size: .92rem; }
tbody tr + tr > * { border-top: 1px solid #edf0f4; }
tbody th { font-weight: 500; }
tfoot > tr > * { border-top: 2px solid var(--line); font-weight: 700; }
figure { margin: 1.4rem 0 0; padding: 1rem; }
figure .picture { overflow-x: auto; }
figure img { display: block; width: 100%; min-width: 620px; height: auto; }
figcaption { margin-bottom: .8rem; font-weight: 600; }
.notes li { margin: .3rem 0; }
details { margin-top: 2.5rem; padding: .8rem 1.1rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .88rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
"""


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(
    path: str | pathlib.Path,
    *,
    title: str,
    config: Mapping,
    result: Mapping,
    pictures: Iterable[tuple[str, bytes]] = (),
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Writes one self-contained HTML file.

    Args:
      path: the file to write, for example `workdir / "report.html"`.
      title: the page's heading.
      config: whatever made the run; shown as JSON at the end.
      result: what `result.json` holds.
      pictures: `(caption, PNG bytes)` in the order to show them; the caption is also the alternative text.
      notes: sentences for a list below the table, for example how many records were skipped and why.

    Returns:
      The path.
    """
    path = pathlib.Path(path)
    figures = [_figure(caption, data) for caption, data in pictures]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(summarise(config, result))}</p>',
        _tiles(result),
        "<h2>Every joint</h2>",
        _html_table(result),
        _notes(notes),
        "<h2>Pictures</h2>" if figures else "",
        *figures,
        _details("Configuration", config),
    ]
    path.write_text(_page(title, "\n".join(part for part in body if part)), encoding="utf-8")
    return path


def summarise(config: Mapping, result: Mapping) -> str:
    """What was trained, and how it did, in plain words.

    >>> config = {"model": "hrnet", "dataset": "lspet", "mining": "ohkm", "k": 8}
    >>> print(summarise(config, {"steps": 1200, "pck": 0.461, "mean_pose_pck": 0.062}))
    The model hrnet was trained on the dataset lspet for 1,200 steps, learning from the 8 hardest joints of
    each image (ohkm). On images it has never seen it puts 46.1 % of the joints within a tenth of the
    subject's size (PCK@0.1); guessing the average pose for everybody gets 6.2 %.
    """
    trained = f"The model {config.get('model')} was trained on the dataset {config.get('dataset')}"
    steps = f" for {result['steps']:,} steps" if result.get("steps") is not None else ""
    hits = (
        f"On images it has never seen it puts {_percent(result.get('pck'))} of the joints within a tenth of"
    )
    baseline = f"guessing the average pose for everybody gets {_percent(result.get('mean_pose_pck'))}."
    return f"{trained}{steps}, {_mining_words(config)}. {hits} the subject's size (PCK@0.1); {baseline}"


def result_table(result: Mapping) -> Table:
    """The table a run ends with: one row a joint, one for all, AP and the mean-pose baseline below."""
    table = Table(title="Validation", caption=_caption(result), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("joint", no_wrap=True)
    for _, heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in result["per_joint"].items():
        table.add_row(escape(name), *(_percent(row.get(key)) for key, _ in _COLUMNS))
    table.add_section()
    table.add_row("all joints", *(_percent(value) for value in _totals(result)), style="bold")
    return table


def _caption(result: Mapping) -> str:
    speed, steps = _number(result.get("images_per_second"), "{:,.1f}"), _number(result.get("steps"), "{:,}")
    lines = (
        f"PCK@0.2 {_percent(result.get('pck@0.2'))}, OKS AP {_number(result.get('ap'))}",
        f"mean-pose baseline: PCK {_percent(result.get('mean_pose_pck'))}",
        f"{speed} images/s over {steps} steps",
    )
    return "\n".join(lines)


def _totals(result: Mapping) -> list[float | None]:
    rates = [row["unit_rate"] for row in result["per_joint"].values() if _exists(row.get("unit_rate"))]
    mean_rate = sum(rates) / len(rates) if rates else None
    return [result.get("pck"), result.get("pck_visible"), result.get("pck_occluded"), mean_rate]


def _html_table(result: Mapping) -> str:
    headings = ("joint", *(name for _, name in _COLUMNS), "labelled")
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    rows = [
        _row(name.replace("_", " "), [row.get(key) for key, _ in _COLUMNS], row.get("count"))
        for name, row in result["per_joint"].items()
    ]
    counts = [row["count"] for row in result["per_joint"].values() if _exists(row.get("count"))]
    foot = _row("all joints", _totals(result), sum(counts) if counts else None)
    body = "\n".join(rows)
    table = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>\n<tfoot>{foot}</tfoot></table>"
    return f'<div class="scroll">{table}</div>'


def _row(name: str, shares: Sequence[float | None], count: int | None) -> str:
    cells = "".join(f"<td{_bar(share)}>{_percent(share)}</td>" for share in shares)
    return f'<tr><th scope="row">{html.escape(name)}</th>{cells}<td>{_number(count, "{:,}")}</td></tr>'


def _bar(share: float | None) -> str:
    """A pale bar behind the number, so that weak joints are seen before they are read."""
    if not _exists(share):
        return ""
    end = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return f' style="background: linear-gradient(to right, #dcecf7 {end}, transparent {end})"'


def _tiles(result: Mapping) -> str:
    tiles = [
        ("PCK@0.1", _percent(result.get("pck")), "of joints within a tenth of the subject"),
        ("PCK@0.2", _percent(result.get("pck@0.2")), "of joints within a fifth of the subject"),
        ("mean pose", _percent(result.get("mean_pose_pck")), "PCK@0.1 of guessing the average pose"),
        ("OKS AP", _number(result.get("ap")), "COCO average precision, 0 to 1"),
        ("speed", _number(result.get("images_per_second"), "{:,.0f}"), "images a second in training"),
    ]
    parts = [
        f'<div><dt>{heading}</dt><dd class="value">{value}</dd><dd class="what">{what}</dd></div>'
        for heading, value, what in tiles
    ]
    return '<dl class="tiles">\n' + "\n".join(parts) + "\n</dl>"


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<h2>Notes</h2>\n<ul class="notes">{items}</ul>' if items else ""


def _figure(caption: str, data: bytes) -> str:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"the picture {caption!r} is not PNG: it starts with {data[:8]!r}")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    text = html.escape(caption)
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    image = f'<img alt="{text}" width="{width}" height="{height}" src="{source}">'
    return f'<figure><figcaption>{text}</figcaption><div class="picture">{image}</div></figure>'


def _details(heading: str, content: Mapping) -> str:
    text = html.escape(json.dumps(content, indent=2, ensure_ascii=False, default=str))
    return f"<details><summary>{heading}</summary><pre>{text}</pre></details>"


def _page(title: str, body: str) -> str:
    return _PAGE.format(title=html.escape(title), style=_CSS, body=body)


def _mining_words(config: Mapping) -> str:
    kind, k = config.get("mining"), config.get("k")
    if kind == "none":
        return "learning from all joints alike"
    at_first = "" if config.get("k_schedule", "constant") == "constant" else "all joints at first, then from "
    if kind == "ohkm":
        return f"learning from {at_first}the {k} hardest joints of each image (ohkm)"
    if kind == "random":
        return f"learning from {at_first}{k} joints of each image drawn at random"
    return f"learning from {at_first}the joints that {kind} mining keeps"


def _exists(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if _exists(share) else _DASH


def _number(value: float | None, form: str = "{:.3f}") -> str:
    return form.format(value) if _exists(value) else _DASH
