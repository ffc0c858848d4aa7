"""Self-contained HTML pages, with figures and style embedded."""

import base64
import html
import importlib.metadata
import io
import re
import struct
from collections.abc import Iterable, Sequence

import jax
from matplotlib.figure import Figure

# On dark pages, invert the lightness of a figure, and rotate the hues back, so that its
# colors keep their names.
STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #555; --back: #fff;
        --box: #f3f5f7; --line: #d8d8d8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #b0b0b0; --back: #121212; --box: #1e2226;
          --line: #3a3a3a; --accent: #56b4e9; }
  figure.chart img { filter: invert(.93) hue-rotate(180deg); }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--back); max-width: 66rem; margin: 1.5rem auto;
       padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
.verdict { background: var(--box); border-left: .3rem solid var(--accent);
           padding: .8rem 1rem; }
.verdict p { margin: 0; font-size: 1.15rem; font-weight: 600; line-height: 1.35; }
.verdict ul { margin: .6rem 0 0; padding-left: 1.1rem; }
.verdict + .figures { margin-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line);
         text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
                                 background: var(--back); padding-left: 0; }
code, pre { background: var(--box); padding: .1rem .3rem; overflow-wrap: anywhere; }
pre { padding: .7rem; white-space: pre-wrap; }
wbr { display: none; }
.figures { display: grid; gap: 1.5rem; align-items: start;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 32rem; height: auto; }
figcaption, .note { color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } h1 { font-size: 1.4rem; }
  wbr { display: inline; }
  td:first-child { white-space: normal; max-width: 8.5rem; min-width: 6rem; }
}
"""


def page(title: str, body: str) -> bytes:
    """Return a complete HTML page around a body, which is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
""".encode()


def verdict(sentences: Sequence[str]) -> str:
    """Return the findings for the top of a page: one sentence, then a list."""
    first, *others = map(html.escape, sentences)
    items = "".join(f"<li>{text}</li>\n" for text in others)
    more = f"<ul>\n{items}</ul>" if others else ""
    return f'<div class="verdict">\n<p>{first}</p>\n{more}</div>'


def table(header: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """Return a table of texts that scrolls if it is too wide, and breaks long names."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        f"<tr><td>{_breakable(name)}</td>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for name, *row in cells
    )
    # tabindex: a box that scrolls must be reachable by keyboard.
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>\n'
        f"<tr>{head}</tr>\n{body}\n</table></div>"
    )


def _breakable(name: str) -> str:
    """Return the name of a clip as HTML that may break after underscores and colons."""
    return re.sub("([_:@])", r"\1<wbr>", html.escape(name, quote=False))


def figure(alt: str, png: bytes, caption: str, *, is_chart: bool = True) -> str:
    """Return a figure with its caption; the image is embedded in the page.

    Args:
        alt: a description of the image, for screen readers.
        png: the image.
        caption: the text below the image.
        is_chart: whether it is a line chart on white, which a dark page inverts; False
            if light and dark stand for values.
    """
    kind = ' class="chart"' if is_chart else ""
    width, height = struct.unpack(">II", png[16:24])  # the header of every PNG
    return (
        f"<figure{kind}>"
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def figures(drawn: Iterable[str]) -> str:
    """Return figures side by side if there is space, below each other on a phone."""
    return '<div class="figures">\n' + "\n".join(drawn) + "\n</div>"


def to_png(drawn: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Return the versions of the packages that a report depends on."""
    found = {}
    for name in ("clipjax", "jax", "optax", "flax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed (run from its sources)"
    return found | {"backend": jax.default_backend()}
