"""Warns where a page loads something from elsewhere: the site works offline."""

import pathlib
import re

from sphinx.util import logging

log = logging.getLogger(__name__)
REMOTE = r"""["']?\s*(?:https?:)?//"""
LOADED = [
    re.compile(
        rf"<(?:script|img|iframe|source|embed|audio|video)\b[^>]*\ssrc={REMOTE}"
    ),
    re.compile(
        rf"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|icon|preload|shortcut|manifest))"
        rf"[^>]*\shref={REMOTE}"
    ),
    re.compile(rf"@import\s+(?:url\()?{REMOTE}"),
    re.compile(rf"\burl\({REMOTE}"),
    re.compile(rf"\bimport(?:\s[^;\n]*?\sfrom\s|\s*\(|\s){REMOTE}"),
]


def loads_from_elsewhere(text: str) -> list[str]:
    """List what a page or stylesheet loads from the network, as it is written."""
    return [
        text[found.start() : found.end() + 60].split("\n")[0]
        for pattern in LOADED
        for found in pattern.finditer(text)
    ]


def code_removed(text: str) -> str:
    """Remove what a page only shows: code, and its highlighted words."""
    return re.sub(r"<pre\b.*?</pre>|<code\b.*?</code>", "", text, flags=re.DOTALL)


def check(app, exception):
    """Warn of each page and stylesheet of the built site that needs a network."""
    if exception is not None or app.builder.format != "html":
        return
    out = pathlib.Path(app.outdir)
    for path in [*out.rglob("*.html"), *(out / "_static").rglob("*.css")]:
        text = code_removed(path.read_text(encoding="utf-8"))
        for found in loads_from_elsewhere(text):
            log.warning("%s loads from elsewhere: %s", path.relative_to(out), found)


def setup(app):
    """Check what has been built."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
