"""Anchors of headings, by the rule of GitHub, which the site follows."""

from __future__ import annotations

import re

FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
MARKUP = re.compile(r"!?\[([^]]*)\]\([^)]*\)")


def without_code(markdown: str) -> str:
    """Remove blocks of code, where # begins a comment and brackets are no links."""
    return FENCE.sub("", markdown)


def anchors(markdown: str) -> list[str]:
    """List the anchors of a page's headings, in their order."""
    found: list[str] = []
    seen: dict[str, int] = {}
    for heading in HEADING.findall(without_code(markdown)):
        text = MARKUP.sub(r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        again = seen[slug] = seen.get(slug, -1) + 1
        found.append(f"{slug}-{again}" if again else slug)
    return found
