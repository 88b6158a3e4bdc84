"""Write ops/requirements.lock: everything pyproject.toml's pins pull in, on every Python.

    python3 ops/lock.py [PYTHON3.11 PYTHON3.12 PYTHON3.13]

Give the three interpreters, or have python3.11, python3.12 and python3.13 on PATH; each needs
pip 22.3 or later. pip itself resolves, once per interpreter, so its own configuration decides
where packages come from. Nothing is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "ops" / "requirements.lock"
VERSIONS = ("3.11", "3.12", "3.13")
# ops/install/environment.py splits the file at this line.
DEV_HEADING = "# --- only for tests and checks ---"
HEADER = """\
# Written by `python3 ops/lock.py` from the pins in pyproject.toml: do not edit.
# Valid for Python 3.11, 3.12 and 3.13 on Linux x86-64.
"""


def resolve(python: str, requirements: list[str], pins: dict[str, str]) -> dict[str, str]:
    """Name -> version of all that `requirements` need under `python`, held to `pins`."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, held = Path(folder, "wanted.txt"), Path(folder, "held.txt")
        wanted.write_text("\n".join(requirements))
        held.write_text("\n".join(f"{name}=={version}" for name, version in pins.items()))
        report = Path(folder, "report.json")
        options = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
        files = ["--report", str(report), "-r", str(wanted), "-c", str(held)]
        subprocess.run([python, "-m", "pip", "install", *options, *files], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {item["name"].lower().replace("_", "-"): item["version"] for item in found}


def lines(per_python: dict[str, dict[str, str]]) -> list[str]:
    """Requirement lines, with a marker where a Python needs none or another version."""
    out = []
    for name in sorted({name for found in per_python.values() for name in found}):
        versions = {found.get(name) for found in per_python.values()}
        for version in sorted(version for version in versions if version):
            pythons = [python for python in VERSIONS if per_python[python].get(name) == version]
            marker = " or ".join(f'python_version == "{python}"' for python in pythons)
            out.append(f"{name}=={version}" + (f"; {marker}" if len(pythons) < 3 else ""))
    return out


def main(interpreters: list[str]) -> None:
    """Resolve on all three interpreters and replace the lock."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    needed = project["dependencies"] + pyproject["build-system"]["requires"]
    extras = project["optional-dependencies"]
    dev = extras["dev"] + extras["eval"]
    run_time, rest = {}, {}
    for version, python in zip(VERSIONS, interpreters, strict=True):
        print(f"resolving for Python {version}", flush=True)
        everything = resolve(python, needed + dev, {})
        run_time[version] = resolve(python, needed, everything)
        rest[version] = {k: v for k, v in everything.items() if k not in run_time[version]}
    body = [*lines(run_time), "", DEV_HEADING, *lines(rest)]
    LOCK.write_text(HEADER + "\n".join(body) + "\n")
    print(f"wrote {LOCK}: {len(lines(run_time))} packages, {len(lines(rest))} more for tests")


if __name__ == "__main__":
    main(sys.argv[1:] or [f"python{version}" for version in VERSIONS])
