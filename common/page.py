"""An HTML page in one file: tables, figures and pictures inside, for a screen of any width, dark or light, without a script."""

import io
from base64 import b64encode
from html import escape
from pathlib import Path

from PIL import Image

HEAVY = 80_000  # bytes; larger pictures are reduced to 256 colours and WIDEST pixels
WIDEST = 1100


def page(title: str, mark: str, parts: list[str]) -> str:
    """Put parts of HTML into a page; mark: who wrote it."""
    body = "\n".join(parts)
    return PAGE.format(title=escape(title), mark=mark, style=STYLE, body=body)


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def scrolling(content: str, label: str) -> str:
    """Let wide content scroll by itself where the page is narrow, by the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    """Lay out texts as a table; the first of a row is its heading."""
    lines = ["".join(f'<th scope="col">{escape(text)}</th>' for text in head)]
    lines += [f'<th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(text)}</td>" for text in rest) for first, *rest in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return scrolling(f"<table><caption>{escape(caption)}</caption>\n{body}\n</table>", caption)


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(figures: list[str]) -> str:
    """Lay out figures beside each other where there is room."""
    return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"


def picture(path: Path, alt: str) -> str:
    """Put a PNG into the page, a large one with fewer colours and pixels. Raises OSError if that one is no picture."""
    content = path.read_bytes()
    if len(content) > HEAVY:
        with Image.open(io.BytesIO(content)) as image:
            small, buffer = image.convert("RGB"), io.BytesIO()
        small.thumbnail((WIDEST, 8 * WIDEST))
        small.quantize(256).save(buffer, "PNG", optimize=True)
        content = min(content, buffer.getvalue(), key=len)
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{b64encode(content).decode()}">'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{mark}
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1c1c1e; --dim: #5f6368; --page: #ffffff; --edge: #d8d8dc; --run: #1f5fd0; --band: #c3c7d1; --odd: #a63c00 }
@media (prefers-color-scheme: dark) { :root {
  --ink: #ececf0; --dim: #a4a7ae; --page: #17181b; --edge: #3a3c42; --run: #7eb0ff; --band: #4a4f5c; --odd: #ffb077 } }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
main { max-width: 70rem; margin: auto; padding: 1rem }
h1, h2, h3 { line-height: 1.2 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--edge) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--edge) }
caption, figcaption { text-align: left; color: var(--dim) }
li.odd { color: var(--odd) } li.odd::marker { content: "!  " } li.good::marker { content: "\\2713  " } li.unknown::marker { content: "?  " }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0 0 1rem }
img { display: block }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--dim); font-size: 13px }
path.tick { stroke: var(--edge) }
polyline { fill: none; stroke-linejoin: round }
polyline.run { stroke: var(--run); stroke-width: 2.5 }
polyline.raw { stroke: var(--run); opacity: .35 }
polyline.median { stroke: var(--dim); stroke-width: 1.5 }
polyline.level { stroke: var(--dim); stroke-dasharray: 5 4 }
polygon.band { fill: var(--band); opacity: .7 }
.legend span { margin-right: 1rem; border-bottom: 2px solid var(--dim); white-space: nowrap }
.legend .run { border-color: var(--run); border-width: 3px }
.legend .raw { border-color: var(--run); border-width: 1px }
.legend .level { border-bottom-style: dashed }
.legend .band { background: var(--band); border: 0; padding: 0 .3rem }
"""
