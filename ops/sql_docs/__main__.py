"""`python -m ops.sql_docs`: brings the generated part of docs/sql.md up to date."""

from __future__ import annotations

from ops.sql_docs.picture import updated
from ops.sql_docs.questions import PAGE

PAGE.write_text(updated(PAGE.read_text()))
