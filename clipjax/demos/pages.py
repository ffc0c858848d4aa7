"""HTML that stands alone: figures and style are inside of the page."""

import base64
import html
import importlib.metadata
import io
from collections.abc import Iterable

import jax
from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
code, pre { background: #f4f4f4; padding: .1rem .3rem; }
pre { padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


def page(title: str, body: str) -> bytes:
    """A whole page; the body is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
""".encode()


def table(header: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """A table of texts, which scrolls where it is too wide."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in cells
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def figure(title: str, png: bytes, caption: str) -> str:
    """A figure with its caption; the image is part of the page."""
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def to_png(drawn: Figure) -> bytes:
    """The image of a figure."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """What a report was made with."""
    found = {}
    for name in ("clipjax", "jax", "optax", "flax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed (run from its sources)"
    return found | {"backend": jax.default_backend()}
