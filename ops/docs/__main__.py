"""`python -m ops.docs`: brings the generated part of docs/sql.md up to date."""

from __future__ import annotations

from ops.docs.picture import updated
from ops.docs.questions import PAGE

PAGE.write_text(updated(PAGE.read_text()))
