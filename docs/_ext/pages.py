"""Pages as GitHub shows them, adapted to the site: notebooks, links, API index."""

import importlib
import inspect
import json
import pathlib
import re
import shutil

from docutils import nodes
from links import relink

DOCS = pathlib.Path(__file__).parent.parent
ROOT = DOCS.parent
ENTRY = re.compile(r"^\.\. auto(function|class|data):: (clipjax\S*)", re.MULTILINE)
INDEX = "<!-- api: index -->"
INCLUDED = re.compile(r"```\{include\} \.\./(\w+\.md)\n```\n")


def copy_notebooks() -> None:
    """Copy the notebooks to where Sphinx looks, and list them by what they show."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    said = []
    for path in notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink(
                    "".join(cell["source"]), path.parent, folder / path.name
                )
        title, paragraph = "".join(notebook["cells"][0]["source"]).split("\n\n")[:2]
        said.append(f"## [{title.lstrip('# ')}]({path.name})\n\n{paragraph}")
        target = folder / path.name
        text = json.dumps(notebook, ensure_ascii=False, indent=1)
        target.write_text(text, encoding="utf-8")
    entries = "\n".join(notebook.stem for notebook in notebooks)
    contents = f"```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    page = "\n\n".join(["# Notebooks", *said, contents])
    (folder / "index.md").write_text(page, encoding="utf-8")


def summary(path: str) -> str:
    """Return the first sentence of what a name's docstring says."""
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]
    text = " ".join(first.split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text)


def api_index() -> str:
    """Return a table for each page of the API, in the order of its contents."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    parts = []
    for name in re.findall(r"^(api/\w+)$", page, re.MULTILINE):
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        entries = [path for _, path in ENTRY.findall(text)]
        if title is None or not entries:
            continue
        rows = [
            f"| `{path.removeprefix('clipjax.')}` | {summary(path)} |"
            for path in entries
        ]
        table = "\n".join(["| name | |", "| --- | --- |", *rows])
        parts.append(f"## [{title[1]}]({name}.md)\n\n{table}")
    return "\n\n".join(parts)


def adapt(app, name, source):
    """Change the text of a page before it is parsed."""
    del app
    page = DOCS / f"{name}.md"
    if name.startswith("notebooks/") or not page.is_file():
        return
    text = relink(source[0], page.parent, page)
    for included in INCLUDED.finditer(text):
        more = (ROOT / included[1]).read_text(encoding="utf-8")
        text = text.replace(included[0], relink(more, ROOT, page))
    source[0] = text.replace(INDEX, api_index()) if name == "api" else text


def describe(app, page, template, context, doctree):
    """Give each page a description, for search engines: its first paragraph."""
    del app, page, template
    if doctree is None:
        return
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 40 and not isinstance(paragraph.parent, nodes.list_item):
            short = text if len(text) < 200 else text[:200].rsplit(" ", 1)[0] + " …"
            quoted = short.replace("&", "&amp;").replace('"', "&quot;")
            quoted = quoted.replace("<", "&lt;")
            context["metatags"] += f'<meta name="description" content="{quoted}" />'
            return


def leave_out_navigation(app, page, template, context, doctree):
    """Leave the table of contents out of pages of source code: it costs a third."""
    del app, template, doctree
    if page.startswith("_modules/"):
        context["toctree"] = lambda **options: ""


def setup(app):
    """Copy the notebooks, and connect the rest."""
    copy_notebooks()
    app.connect("source-read", adapt)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", leave_out_navigation, priority=100)
    return {"parallel_read_safe": True}
