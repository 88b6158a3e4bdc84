"""The public SQL interface: views in the schema `audit`, for people who read with SQL.

They are recreated by `migrations.upgrade` whenever their definition (views.sql) has changed, and
need no migrations, since they are derived from the tables.
"""

from __future__ import annotations

import re
from pathlib import Path

from marco_search.store.queue.states import SUBJECT

SCHEMA = "audit"
SQL = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8").replace("{subject}", SUBJECT)
CREATE = {
    name: statement
    for statement, name in re.findall(r"^(CREATE VIEW audit\.(\w+) .*?);$", SQL, re.M | re.S)
}
"""The statement that makes each view, by name, in order."""
