"""`python -m clipjax`, and the command `clipjax`."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

EXTRAS = ("click", "flax", "matplotlib", "rich", "mlxtend", "dp_accounting")


def run(arguments: Sequence[str]) -> int:
    """Run a command line, and return its exit code; a missing extra is one line."""
    try:
        from .demos import cli

        return cli.main(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        missing = f"{error.name} is missing: pip install 'clipjax[demos]'"
        print(f"clipjax: error: {missing}", file=sys.stderr)
        return 2


def main() -> NoReturn:
    """Run the command line of the process, and end it."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == 130:
        # Threads of XLA may still be at work on what was interrupted: they crash when
        # the interpreter is taken down beneath them.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
