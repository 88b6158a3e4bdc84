"""The command line `marco`. Its modules import what is heavy only when a command runs."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

# Before numpy is loaded. The engine decodes with one BLAS thread whatever is set
# (marco_search/runtime/embedded/linear.py); a pool of others would be idle in every process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def run() -> int:
    """Run `marco` with the words of this process and return its exit code."""
    _open_closed_streams()
    with loading():
        from marco_search.cli.main import main
    return main()


@contextmanager
def loading() -> Iterator[None]:
    """While modules are imported, Ctrl-C ends the process without a word.

    As an exception it could come out of an import as an error of another kind, or not at all:
    pydantic's compiled part can lose it, and with it the pattern of a field.
    """
    held = current_thread() is main_thread()
    held = held and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if held:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if held:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_closed_streams() -> None:
    """Replace standard streams that the caller closed by empty ones.

    Otherwise the next file or connection would get their number.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
