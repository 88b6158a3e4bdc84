"""Where everything of one MARCO_HOME lies.

    services.json  state and passwords, 0600      logs/      one log a server, and the supervisor's
    *.lock, keep   see control.py                 data/      the servers' data and, where needed,
    place.json     where data is, if not here                a copy of their programs

Root's servers run as another user, who can't reach a home below a folder closed to others
(0700, such as /root). Instead of opening such folders, `data` then lies in a folder of its own
under /var/lib/marco-search, and place.json says which.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from marco_search.errors import LocalServiceFailed
from marco_search.local.account import Account
from marco_search.local_state import FILE_NAME

ELSEWHERE = Path("/var/lib/marco-search")
_LARGEST_LOG = 5 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under one home. `home` is absolute."""

    home: Path

    @classmethod
    def of(cls, home: Path) -> Layout:
        """The layout of `home`, which is made if missing."""
        home = home.absolute()
        try:
            if not home.exists():
                home.mkdir(parents=True)
                if os.geteuid() == 0:  # the servers' account must pass; nothing above is opened
                    home.chmod(0o711)
            (home / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise LocalServiceFailed(
                f"MARCO_HOME {home} can't be used ({error.strerror}): "
                "set MARCO_HOME to a folder you can write to"
            ) from None
        return cls(home)

    @property
    def state(self) -> Path:
        """The state file."""
        return self.home / FILE_NAME

    @property
    def keep(self) -> Path:
        """Present while `marco up` wants the services to stay."""
        return self.home / "keep"

    @property
    def place(self) -> Path:
        """Says where the data is, when not under the home."""
        return self.home / "place.json"

    def lock(self, name: str) -> Path:
        """A lock file: `start`, `users` or `supervisor`."""
        return self.home / f"{name}.lock"

    def log(self, name: str) -> Path:
        """A log file: `postgres`, `redis` or `supervisor`."""
        return self.home / "logs" / f"{name}.log"

    def rotate_logs(self) -> None:
        """Set logs aside that have grown large; one old one of each is kept."""
        for file in (self.home / "logs").glob("*.log"):
            if file.stat().st_size > _LARGEST_LOG:
                file.replace(file.with_suffix(".log.1"))

    def data(self, account: Account) -> Path:
        """The folder for data, one that `account` can enter. Made if missing."""
        recorded = self._recorded_place()
        if recorded is not None:
            return recorded
        data = self.home / "data"
        data.mkdir(exist_ok=True)
        data.chmod(0o755)  # each server's own folder in it is closed
        return data if account.can_enter(data) else self._new_place()

    def _recorded_place(self) -> Path | None:
        try:
            record = json.loads(self.place.read_text())
            home, data = Path(record["home"]), Path(record["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # A moved home keeps its data; a copied one must not share the original's.
        copied = home != self.home and home.exists()
        return None if copied or not data.is_dir() else data

    def _new_place(self) -> Path:
        try:
            ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
            ELSEWHERE.chmod(0o755)
            data = Path(tempfile.mkdtemp(dir=ELSEWHERE))
        except OSError as error:
            raise LocalServiceFailed(
                f"the servers run as `nobody`, who can't enter {self.home}, and {ELSEWHERE} "
                f"can't be used either ({error.strerror}): set MARCO_HOME to a folder that "
                "others may pass through"
            ) from None
        data.chmod(0o755)
        self.place.write_text(json.dumps({"home": str(self.home), "data": str(data)}))
        return data

    def purge(self) -> None:
        """Delete the home and its data elsewhere. Nothing may run there."""
        recorded = self._recorded_place()
        if recorded is not None:
            shutil.rmtree(recorded, ignore_errors=True)
        shutil.rmtree(self.home)
