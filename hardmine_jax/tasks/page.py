"""A page of HTML that opens anywhere: its parts, and the numbers as they are written in them.

Shares in 0..1 are written as percent; what does not exist (None or NaN) is an en dash. The page carries its
pictures and its style within itself and forbids everything else by its security policy; all text is escaped,
and what would break its lines or turn its letters around is written out.
"""

import base64
import dataclasses
import html
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

from hardmine_jax.data.problems import printable

_DASH = "–"
_CSS = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --line: #d9e0e7; --faint: #edf0f4;
        --page: #f5f7fa; --card: #fff; --bar: #dcecf7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #a3b0bd; --line: #3b454f; --faint: #2b333b; --page: #14181c;
          --card: #1d2329; --bar: #23455c; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0 0 .75rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.3rem; }
.lead { margin: 0; max-width: 60rem; font-size: 1.15rem; overflow-wrap: anywhere; }
.tiles div, .scroll, figure, details { border: 1px solid var(--line); border-radius: .6rem;
                                      background: var(--card); }
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
tbody tr + tr > * { border-top: 1px solid var(--faint); }
tbody th { font-weight: 500; }
tfoot > tr > * { border-top: 2px solid var(--line); font-weight: 700; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.4rem; margin: 0; }
.facts dt { color: var(--soft); font-weight: 600; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 0; padding: 1rem; }
figure .panels { display: grid; grid-template-columns: repeat(var(--wide), minmax(0, 1fr));
                 align-items: start; row-gap: .4rem; border-radius: .3rem; background: #fff; }
/* What is not divided has letters for less than the width of the page. */
figure .alone { max-width: 52rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .8rem; font-weight: 600; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  main { padding: 1rem .6rem 2rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding: .38rem .4rem; font-size: .9rem; }
  thead th { white-space: normal; vertical-align: bottom; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .5rem; }
  figure { padding: .6rem; }
  figure .panels { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); }
}
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


# The rows of a picture, each of as many PNGs (the last may have fewer): the panels that stand side by side.
Panels = Sequence[Sequence[bytes]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table: a name, shares (or None), and how many there are of it."""

    name: str
    shares: Sequence[float | None]
    count: int | None


def write_page(path: str | pathlib.Path, title: str, body: Iterable[str]) -> pathlib.Path:
    """Writes one self-contained file: the heading, and the parts that are not empty."""
    path = pathlib.Path(path)
    parts = [f"<h1>{escape(title)}</h1>", *(part for part in body if part)]
    text = _PAGE.format(title=escape(title), style=_CSS, body="\n".join(parts))
    path.write_text(text, encoding="utf-8")
    return path


def escape(text: str) -> str:
    """
    >>> print(escape("</script>"), escape("a\\u202eb\\ud800"))
    &lt;/script&gt; a\\u202eb\\ud800
    """
    return html.escape(printable(text))


def lead(text: str) -> str:
    return f'<p class="lead">{escape(text)}</p>'


def tiles(contents: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: (heading, value, what it is)."""
    parts = [
        f'<div><dt>{heading}</dt><dd class="value">{value}</dd><dd class="what">{what}</dd></div>'
        for heading, value, what in (map(escape, texts) for texts in contents)
    ]
    return '<dl class="tiles">\n' + "\n".join(parts) + "\n</dl>"


def table(headings: Sequence[str], rows: Iterable[Row], total: Row) -> str:
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "\n".join(_row(row) for row in rows)
    foot = _row(total)
    lines = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>\n<tfoot>{foot}</tfoot></table>"
    return f'<div class="scroll">{lines}</div>'


def notes(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<h2>Notes</h2>\n<ul class="notes">{items}</ul>' if items else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """(what, text) one below the other."""
    items = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in pairs)
    return f'<h2>This run</h2>\n<dl class="facts">{items}</dl>' if items else ""


def figures(pictures: Iterable[tuple[str, bytes | Panels]]) -> list[str]:
    """(caption, PNG bytes or panels), in the order to show them; the caption is also the alternative text.

    Where the page is narrow there are half as many panels in a row.
    """
    parts = [_figure(caption, picture) for caption, picture in pictures]
    return ["<h2>Pictures</h2>", *parts] if parts else []


def details(heading: str, content: Mapping) -> str:
    """Folded away: something as JSON."""
    lines = json.dumps(content, indent=2, ensure_ascii=False, default=str).split("\n")
    text = "\n".join(map(escape, lines))
    return f"<details><summary>{escape(heading)}</summary><pre>{text}</pre></details>"


def exists(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if exists(share) else _DASH


def table_title(result: Mapping) -> str:
    """Of the table of results: what was scored."""
    evaluation = result.get("evaluation")
    return f"{evaluation['data']}, {evaluation['split']}" if evaluation else "Validation"


def speed_line(result: Mapping) -> str:
    """How fast a training went, and for how long."""
    speed, steps = number(result.get("images_per_second"), "{:,.1f}"), number(result.get("steps"), "{:,}")
    return f"{speed} images/s{chip_share(result, ', ')} over {steps} steps"


def chip_share(result: Mapping, before: str) -> str:
    """What that was of the chips' peak, where that is known: else empty.

    >>> chip_share({"tflops_per_device": 93.25, "mfu": 0.0943}, "; ")
    '; 93.2 TFLOP/s a chip, MFU 9.4 %'
    """
    if not (exists(result.get("mfu")) and exists(result.get("tflops_per_device"))):
        return ""
    return f"{before}{result['tflops_per_device']:,.3g} TFLOP/s a chip, MFU {percent(result['mfu'])}"


def number(value: float | None, form: str = "{:.3f}") -> str:
    return form.format(value) if exists(value) else _DASH


def _row(row: Row) -> str:
    cells = "".join(f"<td{_bar(share)}>{percent(share)}</td>" for share in row.shares)
    return f'<tr><th scope="row">{escape(row.name)}</th>{cells}<td>{number(row.count, "{:,}")}</td></tr>'


def _bar(share: float | None) -> str:
    """A pale bar behind the number, so that weak joints are seen before they are read."""
    if not exists(share):
        return ""
    end = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return f' style="background: linear-gradient(to right, var(--bar) {end}, transparent {end})"'


def _figure(caption: str, picture: bytes | Panels) -> str:
    rows = [[picture]] if isinstance(picture, bytes) else picture
    images = [_image(caption, data) for row in rows for data in row]
    wide = len(rows[0])
    kind = "panels" if len(images) > 1 else "panels alone"
    start = f'<div class="{kind}" style="--wide: {wide}; --narrow: {max(1, wide // 2)}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{start}{''.join(images)}</div></figure>"


def _image(caption: str, data: bytes) -> str:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"the picture {caption!r} is not PNG: it starts with {data[:8]!r}")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(caption)}" width="{width}" height="{height}" src="{source}">'
