"""Putting the checkout itself into the environment, as an editable install would.

Done by hand because it takes milliseconds instead of seconds, needs no build backend, writes
nothing into the checkout, and works in a path with spaces.
"""

from __future__ import annotations

import tomllib
from pathlib import Path


def link(root: Path, venv: Path) -> None:
    """Make `root` importable from `venv` and install its console scripts."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (site,) = (venv / "lib").glob("python3.*/site-packages")
    name = project["name"].replace("-", "_")
    (site / f"{name}.pth").write_text(f"{root}\n")
    for old in site.glob(f"{name}-*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    info = site / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    requires = [f"Requires-Dist: {requirement}" for requirement in project["dependencies"]]
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}"]
    metadata += [f"Version: {project['version']}", *requires]
    scripts = project.get("scripts", {})
    entries = [f"{script} = {target}" for script, target in scripts.items()]
    files = {
        "METADATA": metadata,
        "INSTALLER": ["ops/bootstrap.py"],
        "entry_points.txt": ["[console_scripts]", *entries],
    }
    record = [f"{info.name}/{file},," for file in (*files, "RECORD")] + [f"{name}.pth,,"]
    for listed, lines in {**files, "RECORD": record}.items():
        (info / listed).write_text("\n".join(lines) + "\n")
    for script, target in scripts.items():
        _console_script(venv / "bin" / script, venv / "bin" / "python", target)


def _console_script(path: Path, python: Path, target: str) -> None:
    module, _, function = target.partition(":")
    # A #! line can hold neither spaces nor a long path, so sh starts Python: to sh the second
    # line is an exec, to Python it is a string. pip writes its scripts the same way.
    path.write_text(
        "#!/bin/sh\n"
        f'\'\'\'exec\' "{python}" "$0" "$@"\n'
        "' '''\n"
        "import sys\n"
        f"from {module} import {function}\n"
        # Without the guard a process that multiprocessing spawns runs the command once more.
        'if __name__ == "__main__":\n'
        f"    sys.exit({function}())\n"
    )
    path.chmod(0o755)
