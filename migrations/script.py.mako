"""${message}.

Revision ${up_revision}, after ${down_revision}. Set SCHEMA_REVISION in
marco_search/store/db.py to it.
"""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """${message}."""
