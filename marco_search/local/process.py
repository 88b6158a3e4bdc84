"""Starting a server process that can't outlive its supervisor."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marco_search.local.account import Account

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: not between fork and exec


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start one server. `stdin` is written to it and closed."""

    arguments: Sequence[str]
    folder: Path
    log: Path
    stdin: str = ""
    death_signal: signal.Signals = signal.SIGTERM


def spawn(command: Command, account: Account) -> subprocess.Popen[bytes]:
    """Start `command` under `account`, in a session of its own.

    The kernel sends `death_signal` when the thread that called this ends, so call it from the
    main thread only.
    """
    with command.log.open("ab") as log:
        command.log.chmod(0o600)
        process = subprocess.Popen(
            command.arguments,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=command.folder,
            env=environment(),
            start_new_session=True,  # Ctrl-C at a terminal goes to the supervisor alone
            preexec_fn=_die_with(os.getpid(), command.death_signal),
            **account.popen_options,
        )
    assert process.stdin is not None
    try:
        process.stdin.write(command.stdin.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already, which its exit status tells
    return process


def environment() -> dict[str, str]:
    """What the servers get of the environment: no secrets, no locale, no PG* variables."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _die_with(supervisor: int, death_signal: signal.Signals) -> Callable[[], None]:
    # subprocess calls this after changing the account, which would clear the setting.
    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(1)

    return in_child


def free_port(preferred: int) -> int:
    """A free loopback TCP port: `preferred` when it is one (0: any)."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free TCP port on 127.0.0.1")
