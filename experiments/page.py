"""Pieces of a self-contained HTML page: no file, script or address outside of it is needed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from metarl.experiments.figures import render

CSS = """
:root { --ink: #1c2430; --soft: #667085; --line: #dfe3e8; --tint: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 28px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 44px 0 2px; padding-top: 20px; border-top: 2px solid var(--ink); }
h3 { font-size: 15px; margin: 28px 0 8px; }
p { margin: 4px 0 10px; max-width: 78ch; }
.soft { color: var(--soft); }
.note { font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); font-size: 12.5px;
  border-bottom: 1px solid var(--ink); padding: 4px 10px; vertical-align: bottom; }
td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.left, td.left { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; }
td b { font-weight: 650; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.35; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
figure { margin: 18px 0 6px; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13px; max-width: 92ch; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; background: #fff; }
summary { cursor: pointer; padding: 7px 12px; font-weight: 600; font-size: 14px; }
pre { margin: 0; padding: 10px 14px; background: var(--tint); overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details pre { border-top: 1px solid var(--line); border-radius: 0 0 6px 6px; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, details { break-inside: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .scroll { overflow: visible; }
}
"""


class Html(str):
    """Text that is HTML already and must not be escaped again."""


def text(value: object) -> Html:
    """`value` as HTML: escaped, unless it is HTML already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *content: object, css: str = "") -> Html:
    """An element with escaped content; `css` is its class."""
    attribute = f' class="{escape(css)}"' if css else ""
    return Html(f"<{name}{attribute}>{''.join(map(text, content))}</{name}>")


def table(
    head: Sequence[object], rows: Sequence[Sequence[object]], left: Sequence[int] = ()
) -> Html:
    """A table whose columns `left`, besides the first, are aligned to the left and may wrap."""
    ths = "".join(tag("th", cell, css="left" * (i in left)) for i, cell in enumerate(head))
    body = "".join(
        tag("tr", *(tag("td", cell, css="left wrap" * (i in left)) for i, cell in enumerate(row)))
        for row in rows
    )
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", Html(ths))), tag("tbody", Html(body))),
        css="scroll",
    )


def image(figure: Figure, description: str, caption: str) -> Html:
    """A figure with its caption, embedded as SVG; `description` is for those who cannot see it."""
    data = base64.b64encode(render(figure, "svg")).decode()
    source = f"data:image/svg+xml;base64,{data}"
    picture = Html(f'<img src="{source}" alt="{escape(description)}">')
    return tag("figure", picture, tag("figcaption", caption))


def dot(colour: str) -> Html:
    """A dot in the colour of a figure's series."""
    return Html(f'<span class="dot" style="background:{escape(colour)}"></span>')


def details(title: str, content: str, *, opened: bool = False) -> Html:
    """A box of preformatted text that opens when it is clicked."""
    inner = tag("summary", title) + tag("pre", content)
    return Html(f"<details{' open' * opened}>{inner}</details>")


def page(title: str, *body: Html) -> str:
    """The whole document."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    content = tag("main", *body)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{content}</body></html>\n'
