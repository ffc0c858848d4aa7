"""Signatures of the API pages: types as the source writes them, linked where known."""

import inspect
import typing

from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode


def as_written(annotation: object) -> object:
    """Return an annotation as text, where the source of a named tuple gives it so."""
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    return annotation


def signature_of(what: str, thing: object) -> inspect.Signature | None:
    """Return the signature with unevaluated types, or None for what has none.

    Sphinx evaluates types, which writes out every alias: ``ArrayLike`` becomes a union
    of nine private types.
    """
    try:
        signature = inspect.signature(thing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    parameters = [
        parameter.replace(annotation=as_written(parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    if what == "method" and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    returned = as_written(signature.return_annotation)
    if what == "class":
        returned = inspect.Signature.empty
    return signature.replace(parameters=parameters, return_annotation=returned)


def show_types(app, what, name, thing, options, shown, returned):
    """Replace what Sphinx would show for a function, a class or a method."""
    del app, name, options, returned
    if shown is None or what not in {"function", "class", "method"}:
        return None
    signature = signature_of(what, thing)
    if signature is None:
        return None
    text = stringify_signature(signature, unqualified_typehints=True)
    return split(text)


def split(text: str) -> tuple[str, str | None]:
    """Split a signature after the bracket that closes its arguments."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            rest = text[position + 1 :].removeprefix(" -> ")
            return text[: position + 1], rest or None
    return text, None


def resolve_short_name(app, env, node, contnode):
    """Link a type such as ``Granularity``, which is named without its module."""
    if node.get("refdomain") != "py" or node.get("reftype") not in {"class", "obj"}:
        return None
    end = node["reftarget"].rpartition(".")[2]
    objects = env.domains.python_domain.objects
    found = [
        (name, entry)
        for name, entry in objects.items()
        if name.rpartition(".")[2] == end and entry.objtype in {"class", "type"}
    ]
    if len(found) != 1 or node["reftarget"].startswith("clipjax."):
        return None
    name, entry = found[0]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name
    )


def setup(app):
    """Connect both to Sphinx."""
    app.connect("autodoc-process-signature", show_types)
    app.connect("missing-reference", resolve_short_name)
    return {"parallel_read_safe": True}
