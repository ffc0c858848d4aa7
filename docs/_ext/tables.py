"""Tables of sentences: marked, so that phones show each row as a small list."""

from statistics import mean

from docutils import nodes


def cells(part) -> list[list[nodes.entry]]:
    """Return the cells of a table's head or body, row by row."""
    return [list(row.findall(nodes.entry)) for row in part.findall(nodes.row)]


def has_sentences(body: list[list[nodes.entry]]) -> bool:
    """Tell whether there are long texts, in one of few columns, and no figures."""
    columns = list(zip(*body, strict=False))
    lengths = [mean(len(cell.astext()) for cell in column) for column in columns]
    figures = any(cell.next_node(nodes.image) for row in body for cell in row)
    is_long = max(lengths) > 40 or (len(columns) < 4 and sum(lengths) > 60)
    return len(columns) > 1 and is_long and not figures


def label(row: list[nodes.entry], names: list[str]) -> None:
    """Put the column's name before each text but the first; wide screens hide it."""
    for cell, name in list(zip(row, names, strict=False))[1:]:
        paragraph = cell.next_node(nodes.paragraph)
        if paragraph is not None and name and cell.astext():
            paragraph.insert(0, nodes.inline("", f"{name}: ", classes=["cell-label"]))


def mark(app, doctree) -> None:
    """Mark tables of sentences, and name their cells where there are three or more."""
    del app
    for table in doctree.findall(nodes.table):
        head, body = table.next_node(nodes.thead), table.next_node(nodes.tbody)
        rows = cells(body) if body is not None else []
        if head is None or not rows or not has_sentences(rows):
            continue
        table["classes"].append("sentences")
        names = [cell.astext() for cell in cells(head)[0]]
        if len(names) > 2:
            for row in rows:
                label(row, names)


def setup(app):
    """Connect to each page once it is parsed."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True}
