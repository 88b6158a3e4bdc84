"""The tables of version 0.1.0, which is the oldest that can be migrated."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from alembic import op

from marco_search.audit.chain import FIRST, follow

revision = "0005"
down_revision = None


def upgrade() -> None:
    """Create them, with the chain's first link: its random root gives the database an id."""
    conn = op.get_bind().connection.driver_connection
    assert conn is not None
    conn.execute(Path(__file__).with_suffix(".sql").read_text())
    root, at = secrets.token_bytes(32), datetime.now(UTC)
    first = follow(None, kind=FIRST, job_id=None, root=root, at=at, format=1)
    conn.execute(
        "INSERT INTO chain (seq, kind, root, previous, head, at) VALUES (0, %s, %s, %s, %s, %s)",
        [FIRST, root, first.previous, first.head, at],
    )
