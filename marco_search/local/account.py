"""The account that the servers run under, and the folder for their data that it can enter.

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
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marco_search.errors import LocalServiceFailed

_ELSEWHERE = Path("/var/lib/marco-search")
_OR_REAL_ONES = "run as an ordinary user, or set DATABASE_URL and REDIS_URL"


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
    recorded = _recorded(home)
    if recorded is not None:
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


def purge(home: Path) -> None:
    """Delete `home` and its data elsewhere. Nothing may run there."""
    recorded = _recorded(home.absolute())
    if recorded is not None:
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
