"""Executes the Python blocks of Markdown pages: python docs/run_snippets.py PAGE...

The blocks of a page run in order, in one namespace, as a reader would run them. In a
block with prompts (``>>>``) the output is compared as well.
"""

from __future__ import annotations

import doctest
import pathlib
import re
import sys

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_page(page: pathlib.Path) -> int:
    """Executes one page and returns how many of its examples failed."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for block in BLOCK.finditer(text):
        code = block.group(1)
        line = text.count("\n", 0, block.start(1))
        if code.startswith(">>>"):
            examples = parser.get_doctest(code, namespace, page.name, str(page), line)
            runner.run(examples, clear_globs=False)
            namespace |= examples.globs
        else:  # empty lines in front, so that errors name the line of the page
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return runner.summarize(verbose=False).failed


if __name__ == "__main__":
    failures = sum(run_page(pathlib.Path(name)) for name in sys.argv[1:])
    sys.exit(1 if failures else 0)
