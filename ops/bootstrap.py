"""From a bare checkout to a running command: `python3 ops/bootstrap.py demo`.

Needs nothing but the standard library. This file only finds a Python that the project
supports and hands over to ops/install, so it keeps to a syntax that very old Pythons can
read: they get a sentence instead of a SyntaxError.
"""

from __future__ import print_function

import os
import subprocess
import sys

# In the order of preference when the Python at hand will not do: 3.12 and 3.11 have wheels of
# everything, 3.13 needs one more step.
SUPPORTED = ((3, 12), (3, 11), (3, 13))

TARGETS = (
    ("demo", "answer the example questions end to end and look into the database"),
    ("test", "run all tests; further words go to pytest"),
    ("check", "lint, format, types, and whether the migrations match the models"),
    ("bench", "run every benchmark; further words name the ones to run"),
    ("test-sglang", "the tests on the real SGLang server, on the CPU (installs 1.6 GB once)"),
    ("test-tamper", "tamper with stored jobs in every way and print the row it is found at"),
    ("bench-store", "SQL and verification on 10,000 stored jobs: .marco/bench/store.json"),
    ("bench-runtime", "how well searches keep an engine busy: .marco/bench/runtime.json"),
    ("bench-queue", "the queue beside plain Celery: .marco/bench/queue.json"),
    ("test-faults", "500 jobs under a storm of faults: .marco/faults/faults.json"),
    ("paper-table", "measure all strategies on the pocket model: docs/results.md"),
    ("up", "start the embedded Postgres and Redis"),
    ("down", "stop them"),
    ("doctor", "say what is reachable, what is wrong and how to fix it"),
    ("install", "only make .venv, with what the tests need"),
    ("help", "this list"),
)

PROBE = (
    "import platform, sys, sysconfig; "
    "print(platform.python_implementation(), sys.version_info[0], sys.version_info[1], "
    "sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
)


def supported(answer):
    # type: (str) -> bool
    """Whether PROBE's answer is that of an ordinary CPython of a supported version."""
    words = answer.split()
    if len(words) != 4 or words[0] != "CPython" or words[3] != "0":
        return False
    return (int(words[1]), int(words[2])) in SUPPORTED


def probe(python):
    # type: (str) -> str
    """What `python` says about itself; empty when it does not run."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.check_output([python, "-c", PROBE], stderr=nowhere).decode()
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_python():
    # type: () -> str
    """Path or name of the Python to use; ends the program when there is none."""
    chosen = os.environ.get("MARCO_PYTHON")
    if chosen:
        if supported(probe(chosen)):
            return chosen
        sys.exit("MARCO_PYTHON=%s is not a working CPython 3.11, 3.12 or 3.13." % chosen)
    names = [sys.executable] + ["python%d.%d" % version for version in SUPPORTED]
    for name in names:
        if name and supported(probe(name)):
            return name
    sys.exit(
        "marco-search needs CPython 3.11, 3.12 or 3.13. This is %s %s, and neither of\n"
        "python3.12, python3.11, python3.13 on PATH works. Install one, or set MARCO_PYTHON\n"
        "to the path of one." % (sys.executable, sys.version.split()[0])
    )


def main(arguments):
    # type: (list[str]) -> None
    """Run the target named by the first argument."""
    target = arguments[0] if arguments else "help"
    if target in ("help", "-h", "--help"):
        print("usage: make TARGET, or python3 ops/bootstrap.py TARGET [WORD ...]\n")
        for name, meaning in TARGETS:
            print("  %-13s %s" % (name, meaning))
        return
    if target not in [name for name, _ in TARGETS]:
        print("No target %r. `python3 ops/bootstrap.py help` lists them." % target, file=sys.stderr)
        sys.exit(2)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    python = find_python()
    # -c and not this file again: whatever runs now has the right version.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ops.install.targets import run; "
    code += "run(sys.argv[1], sys.argv[2:])"
    command = [python, "-c", code, root] + arguments
    os.execvp(python, command)


if __name__ == "__main__":
    main(sys.argv[1:])
