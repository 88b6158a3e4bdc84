"""The command line `marco`. Its modules import what is heavy only when a command runs."""

import os
import signal
import sys

# Before numpy is loaded. The engine decodes with one BLAS thread whatever is set
# (marco_search/runtime/embedded/linear.py); a pool of others would lie idle in every process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def run() -> int:
    """Run `marco` with the words of this process and return its exit code."""
    _open_closed_streams()
    # Until the program can answer it, Ctrl-C ends the process without a word. As an exception
    # it could come out of any import, also as an error of another kind with a traceback.
    answered = signal.getsignal(signal.SIGINT)
    if answered is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from marco_search.cli.main import main

    signal.signal(signal.SIGINT, answered)
    return main()


def _open_closed_streams() -> None:
    """Where the caller closed a standard stream, there is nothing to read, and nobody reads.

    Else the next file or connection would get its number.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
