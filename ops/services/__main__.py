"""`python -m ops.services HOME REPORT_FD`: the supervisor in the background.

Started by control.py only. "ready", or what went wrong, is written to the descriptor.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def main(home: str, report_fd: int) -> None:
    """Leave the caller's process tree, then supervise until stopped."""
    if os.fork():
        os._exit(0)  # the caller waits for this one, and has no child afterwards
    # Not earlier: the caller is released sooner, and a fork wants few threads.
    from marco_search.errors import MarcoError
    from ops.services.layout import Layout
    from ops.services.supervisor import Supervisor

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def report(text: str) -> None:
        os.write(report_fd, text.encode())
        os.close(report_fd)

    reported = False

    def ready() -> None:
        nonlocal reported
        reported = True
        report("ready")

    try:
        Supervisor(Layout.of(Path(home))).run(ready)
    except Exception as error:
        logging.exception("the supervisor ends")
        if not reported:
            known = isinstance(error, MarcoError)
            report(str(error) if known else f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
