"""`make fuzz SECONDS=600 [ARGS="job_line answer"]`: each target for so long, or those named.

The target `http` asks the API: with FUZZ_DATABASE_URL on that database, else on one that is away.

Every input has 10 seconds of processor time, and a target 4 GiB of memory. What fails is shown in
its smallest form, and found again first by the next run (.hypothesis). Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from typing import Any

from hypothesis import HealthCheck, given, settings

from tests.fuzz.inputs import near
from tests.fuzz.targets import TARGETS, check, leave_nothing, seeds

_INPUT_S = 10.0
_MEMORY = 4 * 2**30
_BATCH = 50  # examples between two looks at the clock


def main() -> int:
    """Run the targets one after the other. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - TARGETS.keys():
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    failed = []
    for name in asked.targets or TARGETS:
        # In a process of its own: a crash of a C library is a finding, too.
        process = multiprocessing.Process(target=_fuzz, args=(name, asked.seconds))
        process.start()
        process.join()
        if process.exitcode:
            failed.append(name)
            print(f"{name}: failed with {process.exitcode}", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "no target failed")
    return 1 if failed else 0


def _fuzz(name: str, seconds: float) -> None:
    faulthandler.enable()
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGVTALRM, _too_slow)
    began, count = time.monotonic(), 0

    @given(near(seeds(name), TARGETS[name].largest))
    @settings(max_examples=_BATCH, deadline=None, suppress_health_check=list(HealthCheck))
    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, _INPUT_S)
        try:
            check(name, data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    try:
        while time.monotonic() < began + seconds:
            run()
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        leave_nothing()
        print(f"{name}: {count:,} inputs in {time.monotonic() - began:.0f} s", flush=True)


def _too_slow(*_: Any) -> None:
    raise AssertionError(f"more than {_INPUT_S:g} s of processor time")


if __name__ == "__main__":
    sys.exit(main())
