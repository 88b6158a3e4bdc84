"""The virtual environment of the peers, 0.5 GB, in the user's cache folder."""

from __future__ import annotations

from pathlib import Path

from ops.install import cached

_NAME = "bench-peers"
_LOCK = Path(__file__).with_name("requirements.lock")


def ensure() -> Path:
    """Its Python, after installing what the lock says if need be.

    Raises LocalServiceFailed, with the reason, where it can't be built.
    """
    return cached.ensure(_NAME, _LOCK, free_gb=2)
