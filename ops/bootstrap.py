"""From a bare checkout to a running command: `python3 ops/bootstrap.py demo`.

Makes .venv with venv and pip, from the lock files with hashes, and runs the target's command in
it. Needs nothing but the standard library, and keeps to a syntax that very old Pythons can read:
they get a sentence instead of a SyntaxError. Where packages come from is pip's configuration.
"""

from __future__ import print_function

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# In the order of preference when the Python at hand will not do.
SUPPORTED = ((3, 12), (3, 11), (3, 13), (3, 14))

# Name, meaning, command in .venv; those that run Python need the packages of tests, too.
TARGETS = (
    ("demo", "answer the example questions end to end and look into the database", "marco demo"),
    ("demo-real", "the same with a weak real model (93 MB download)", "marco demo --real"),
    (
        "test",
        "run all tests; further words go to pytest",
        "pytest -n 4 --dist loadfile --no-loadscope-reorder",
    ),
    ("test-quick", "run the unit tests only", "pytest -n 2 --dist loadfile tests/unit"),
    ("check", "lint, format, types, imports, and the migrations", "python -m ops.checks"),
    ("bench", "run every benchmark; further words name some", "python -m ops.bench"),
    ("test-sglang", "tests on the real SGLang server (1.6 GB)", "python -m pytest tests/sglang"),
    ("test-openai", "tests on llama.cpp, compiled for it", "python -m pytest tests/openai"),
    ("test-finetune", "train tiny models (installs 1.3 GB)", "python -m pytest tests/finetune"),
    ("test-tamper", "tamper with stored jobs", "pytest -q -s tests/integration/test_tamper.py"),
    ("bench-store", "SQL and verification on 10,000 stored jobs", "python -m ops.bench.store"),
    ("bench-runtime", "how well searches keep an engine busy", "python -m ops.bench.runtime"),
    ("bench-queue", "the queue beside plain Celery", "python -m ops.bench.queue"),
    ("test-faults", "500 jobs under a storm of faults", "python -m tests.faults.run"),
    ("fuzz", "feed every reader of outside input with odd input", "python -m tests.fuzz"),
    ("audit", "find known vulnerabilities in the locked packages", "python -m ops.checks audit"),
    ("paper-table", "measure all strategies: docs/results.md", "python -m ops.bench.paper_table"),
    ("finetune", "fine-tune a model; the words name a configuration", "python -m ops.finetune"),
    ("self-improve", "search, learn, search again", "python -m ops.finetune.self_improve"),
    ("docs", "build the site into site/", "python -m mkdocs build -q -f ops/docs/mkdocs.yml"),
    ("stack", "start the containers, with passwords of their own", "ops/stack.py"),
    ("test-containers", "tests on a Docker engine", "python -m pytest tests/containers"),
    ("up", "start the embedded Postgres and Redis", "marco up"),
    ("down", "stop them", "marco down"),
    ("doctor", "report what is reachable, what is wrong and how to fix it", "marco doctor"),
    ("install", "only make .venv, with what the tests need", ""),
    ("help", "this list", ""),
)

PROBE = """
import platform, sys, sysconfig
ok = platform.python_implementation() == 'CPython' and sys.version_info[:2] in %r
sys.exit(not ok or bool(sysconfig.get_config_var('Py_GIL_DISABLED')))
"""

FAILED = """
The installation failed, see above. If venv or ensurepip is missing, install it (Debian, Ubuntu:
`apt-get install python3-venv`) or set MARCO_PYTHON to another Python. If packages could not be
fetched, check the network and pip's configuration (`python3 -m pip config list`). Then run the
same command again: it starts over."""


def is_supported(python):
    # type: (str) -> bool
    """Whether `python` is an ordinary CPython of a supported version."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call([python, "-c", PROBE % (SUPPORTED,)], stderr=nowhere) == 0
    except OSError:
        return False


def find_python():
    # type: () -> str
    """Path or name of the Python to use; ends the program when there is none."""
    chosen = os.environ.get("MARCO_PYTHON")
    names = [chosen] if chosen else [sys.executable] + ["python%d.%d" % v for v in SUPPORTED]
    for name in names:
        if name and is_supported(name):
            return name
    if chosen:
        sys.exit("MARCO_PYTHON=%s is not a working CPython 3.11 to 3.14." % chosen)
    sys.exit(
        "marco-search needs CPython 3.11 to 3.14. This is %s %s, and none of %s\n"
        "on PATH works. Install one, or set MARCO_PYTHON to the path of one."
        % (sys.executable, sys.version.split()[0], ", ".join(names[1:]))
    )


def make_environment(venv, locks, editable="", timeout_s=None):
    # type: (str, list[str], str, float | None) -> str
    """The Python of the environment `venv`, made from `locks` and `editable` unless it was.

    Left alone when nothing changed, built again when in doubt; several at once wait for each
    other. Exits with a message, or raises subprocess.TimeoutExpired.
    """
    import fcntl

    made_from = {os.path.basename(lock): _digest(lock) for lock in locks}
    made_from["python"] = "%s %s" % (sys.version.split()[0], venv)  # scripts hold absolute paths
    if editable:
        made_from["project"] = _digest(os.path.join(editable, "pyproject.toml"))
    python = os.path.join(venv, "bin", "python")
    if made_from.items() <= _installed(venv).items():
        return python
    stamp = os.path.join(venv, "marco-install.json")
    folder = os.open(os.path.dirname(venv), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        had = _installed(venv)
        outdated = [name for name in had if made_from.get(name, had[name]) != had[name]]
        if not had or set(outdated) - {"project"}:
            if os.path.exists(stamp):
                os.remove(stamp)  # first: without it the next run starts over
            shutil.rmtree(venv, ignore_errors=True)
            had = {}
            print("[bootstrap] making " + venv, file=sys.stderr)
            _run([sys.executable, "-m", "venv", venv], timeout_s)
        pip = [python, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check"]
        for lock in locks:
            if os.path.basename(lock) not in had:
                print("[bootstrap] installing " + os.path.basename(lock), file=sys.stderr)
                _run(pip + _options(lock) + ["-r", lock], timeout_s)
        if editable and had.get("project") != made_from["project"]:
            _run(pip + ["--no-deps", "--no-build-isolation", "-e", editable], timeout_s)
        had.update(made_from)
        with open(stamp + ".new", "w") as file:
            json.dump(had, file)
        os.rename(stamp + ".new", stamp)
    finally:
        os.close(folder)
    return python


def _installed(venv):
    # type: (str) -> dict[str, str]
    """What a complete environment was made from; empty if there is none."""
    if not os.access(os.path.join(venv, "bin", "python"), os.X_OK):
        return {}
    try:
        with open(os.path.join(venv, "marco-install.json")) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}


def _digest(path):
    # type: (str) -> str
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _options(lock):
    # type: (str) -> list[str]
    # Exactly what is locked, wheels only. Bytecode is left to the first import: compiling all
    # of it takes as long as the rest.
    options = ["--no-deps", "--only-binary", ":all:", "--no-compile"]
    with open(lock) as file:
        options += ["--require-hashes"] if "--hash=" in file.read() else []
    return options


def pip_environment():
    # type: () -> dict[str, str]
    """This process' variables less those that would send packages elsewhere."""
    elsewhere = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    env = {name: value for name, value in os.environ.items() if name not in elsewhere}
    env["PIP_USER"] = "0"
    if os.path.expanduser("~") == "~":  # no home at all: pip would make a folder of that name
        env["PIP_NO_CACHE_DIR"] = "1"
    return env


def _run(command, timeout_s):
    # type: (list[str], float | None) -> None
    """Exits with the end of what the command printed if it fails."""
    done = subprocess.run(
        command,
        env=pip_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.decode("utf-8", "replace").splitlines()[-25:])
        sys.exit(tail + "\n" + FAILED)


def locks(with_dev):
    # type: (bool) -> list[str]
    """The lock files to install here: the embedded servers are Linux programs for glibc."""
    names = ["requirements.lock"]
    machine = (sys.platform, platform.machine(), platform.libc_ver()[0])
    names += ["requirements-servers.lock"] if machine == ("linux", "x86_64", "glibc") else []
    names += ["requirements-dev.lock"] if with_dev else []
    return [os.path.join(ROOT, "ops", name) for name in names]


def main(arguments):
    # type: (list[str]) -> None
    """Run the target named by the first argument."""
    target = arguments[0] if arguments else "help"
    commands = {name: command.split() for name, _, command in TARGETS}
    if target in ("help", "-h", "--help"):
        print("usage: make TARGET, or python3 ops/bootstrap.py TARGET [WORD ...]\n")
        for name, meaning, _ in TARGETS:
            print("  %-15s %s" % (name, meaning))
        return
    if target not in commands:
        print("No target %r. `python3 ops/bootstrap.py help` lists them." % target, file=sys.stderr)
        sys.exit(2)
    if sys.platform == "win32":
        sys.exit("marco-search does not run on Windows itself: use Linux or WSL 2.")
    if os.environ.pop("MARCO_BOOTSTRAP", None) is None:
        os.environ["MARCO_BOOTSTRAP"] = "running on the Python that was found"
        python = find_python()
        os.execvp(python, [python, os.path.abspath(__file__)] + arguments)
    venv = os.path.join(ROOT, ".venv")
    command = commands[target]
    if command[:1] == ["ops/stack.py"]:  # it needs no packages
        os.execv(sys.executable, [sys.executable, os.path.join(ROOT, command[0])])
    try:
        make_environment(venv, locks(command[:1] != ["marco"]), editable=ROOT)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run it again: it starts over cleanly.")
    if not command:
        print("Installed. Next: make demo, or %s/bin/marco --help" % venv)
        return
    os.chdir(ROOT)
    program = os.path.join(venv, "bin", command[0])
    os.execve(program, [program] + command[1:] + arguments[1:], target_environment(venv))


def target_environment(venv):
    # type: (str) -> dict[str, str]
    """The variables that a target's command runs with.

    Without PYTHONDONTWRITEBYTECODE, which some images set: packages are installed without
    bytecode, so every process would compile them again, which takes longer than its work.
    """
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env["PATH"] = os.path.join(venv, "bin") + os.pathsep + env.get("PATH", os.defpath)
    env["VIRTUAL_ENV"] = venv
    return env


if __name__ == "__main__":
    main(sys.argv[1:])
