"""Configuration of Sphinx."""

import pathlib
import sys
import tomllib

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

metadata = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
project = metadata["name"]
author = metadata["authors"][0]["name"]
copyright = f"2026, {author}"
release = metadata["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # MathJax and its fonts, copied into the built site
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    # In the folder _ext:
    "docstrings",
    "names",
    "offline",
    "pages",
    "signatures",
    "tables",
]
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = f"clipjax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_show_sphinx = False

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the extension `signatures` shows them as they are written
autodoc_preserve_defaults = True
maximum_signature_line_length = 72
napoleon_attr_annotations = False

copybutton_prompt_text = ">>> |\\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # committed with outputs, and executed by the tests
