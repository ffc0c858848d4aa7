"""Executes the Python blocks of Markdown pages: python docs/run_snippets.py PAGE...

The blocks of a page run in order, in one namespace, as a reader would run them. In a
block with prompts (``>>>``) the output is compared as well. All pages run in one
process, so that what they share is compiled once; one that fails does not stop others.
"""

from __future__ import annotations

import doctest
import os
import pathlib
import re
import sys
import traceback

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
            source = "\n" * line + code
            program = compile(source, str(page), "exec", dont_inherit=True)
            exec(program, namespace)
    return runner.summarize(verbose=False).failed


def failed_pages(names: list[str]) -> list[str]:
    """Executes pages and returns those that failed; what is wrong is printed."""
    failed = []
    for name in names:
        environment = dict(os.environ)
        try:
            is_good = run_page(pathlib.Path(name)) == 0
        except Exception:
            traceback.print_exc()
            is_good = False
        os.environ.clear()
        os.environ.update(environment)
        if not is_good:
            failed.append(name)
    return failed


if __name__ == "__main__":
    failures = failed_pages(sys.argv[1:])
    print(*(f"failed: {name}" for name in failures), sep="\n")
    sys.exit(1 if failures else 0)
