"""What holds for all tests."""

from __future__ import annotations

import signal

# Where the tests run in the background, Ctrl-C is ignored, and would be in every process that they
# start: those that interrupt one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
