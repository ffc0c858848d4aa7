"""Ctrl-C that waits for the compiled program to return."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 130  # what a shell reports for a command ended by Ctrl-C
MESSAGE = b"\nclipjax: stopping after these steps; Ctrl-C again leaves at once\n"


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C set a flag; the function that is yielded raises KeyboardInterrupt.

    An exception raised by the signal handler can occur inside XLA's callbacks, and
    leaves XLA's threads running while the interpreter shuts down: 9 of 14 such exits
    crashed. A second Ctrl-C ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python hands signals to the main thread alone
        return
    is_pressed = False

    def note(number, frame):
        del number, frame
        nonlocal is_pressed
        if is_pressed:
            os._exit(EXIT_CODE)
        is_pressed = True
        os.write(2, MESSAGE)  # print may hold the lock of the interrupted print

    def check():
        if is_pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
