"""`python -m marco_search.local HOME REPORT_FD`: the supervisor in the background.

Started by control.py only. "ready", or what went wrong, is written to the descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from marco_search.errors import MarcoError


def main(home: str, report_fd: int) -> None:
    """Supervise until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reported = False

    def report(text: str) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with contextlib.suppress(BrokenPipeError):  # who started it was interrupted
                os.write(report_fd, text.encode())
            os.close(report_fd)

    try:
        # Here, so that a package that does not load is reported, too.
        from marco_search.local.layout import Layout
        from marco_search.local.supervisor import Supervisor

        Supervisor(Layout.of(Path(home))).run(lambda: report("ready"))
    except Exception as error:
        logging.exception("the supervisor ends")
        ours = isinstance(error, MarcoError)
        report(str(error) if ours else f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
