"""Which account the servers run under.

Postgres refuses to run as root. Started by root, both servers therefore run as `nobody`: an
account that every Linux has, so none is added. (initdb looks its account up in the user list,
so a bare number would not do.) Started by anyone else, they run as that user.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from marco_search.errors import LocalServiceFailed


class PopenOptions(TypedDict, total=False):
    """The part of subprocess.Popen's options that changes the account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the servers run as. `switch` is set when that is not the present user."""

    uid: int
    gid: int
    switch: bool

    @property
    def popen_options(self) -> PopenOptions:
        """Options that make a subprocess run under this account."""
        if not self.switch:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path, mode: int) -> None:
        """Give `path` to this account, with this mode."""
        if self.switch:
            try:
                os.chown(path, self.uid, self.gid)
            except OSError as error:
                raise LocalServiceFailed(
                    f"this root can't give files to user {self.uid} ({error.strerror}), and "
                    "Postgres won't run as root: run as an ordinary user, or set DATABASE_URL "
                    "and REDIS_URL"
                ) from None
        path.chmod(mode)

    def can_enter(self, path: Path) -> bool:
        """Whether this account may list `path`, which means passing all folders above it."""
        if not self.switch:
            return os.access(path, os.R_OK | os.X_OK)
        # Asked of the system, not worked out from modes: there may be access lists.
        test = ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", str(path)]
        return subprocess.run(test, cwd="/", check=False, **self.popen_options).returncode == 0


def server_account() -> Account:
    """The account for the servers: `nobody` for root, the present user otherwise."""
    uid = os.geteuid()
    if uid != 0:
        try:
            pwd.getpwuid(uid)
        except KeyError:
            raise LocalServiceFailed(
                f"user {uid} is in no user list, and Postgres looks its user up: run as a named "
                "user, or set DATABASE_URL and REDIS_URL"
            ) from None
        return Account(uid, os.getegid(), switch=False)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise LocalServiceFailed(
            "Postgres won't run as root and there is no user `nobody` to run it: run as an "
            "ordinary user, or set DATABASE_URL and REDIS_URL"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid, switch=True)
