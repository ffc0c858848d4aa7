"""Links of names in plain code, such as `zclip` or `clipjax.zclip`.

So the pages need no roles, which GitHub would show as they are.
"""

import re

from docstrings import page_of
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

NAME = re.compile(r"(clipjax\.)?[a-zA-Z_]\w+(\.[a-zA-Z_]\w+)*")


class LinkNames(SphinxTransform):
    """Links a recipe's name to its page, and any other name to its entry in the API."""

    default_priority = 10  # before references are resolved

    def apply(self, **kwargs):
        """Replace literals that may be names; an unknown one stays plain code."""
        del kwargs
        if self.env.docname.startswith("api/"):
            return
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removesuffix("()")
            if isinstance(literal.parent, nodes.reference) or not NAME.fullmatch(name):
                continue
            link = self.link(name.removeprefix("clipjax."))
            literal.replace_self(link)
            link += literal

    def link(self, name: str) -> addnodes.pending_xref:
        """Return the reference of one name, without its text."""
        page = page_of(name)
        if page is not None and self.env.docname not in {"api", page}:
            attributes = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
            return addnodes.pending_xref(
                "", refexplicit=True, refwarn=False, **attributes
            )
        return addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=f"clipjax.{name}",
            refwarn=False,
        )


def setup(app):
    """Add the transform."""
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True}
