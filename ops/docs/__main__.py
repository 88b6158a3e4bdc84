"""`python -m ops.docs`: brings the generated part of docs/sql.md up to date."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psycopg

from marco_search import migrations
from marco_search.local import local_services
from ops.docs.sql_page import PAGE, updated

with tempfile.TemporaryDirectory(prefix="marco-docs-") as folder:
    Path(folder).chmod(0o711)
    with local_services(Path(folder, "home")) as services:
        migrations.upgrade(services.database_url)
        with psycopg.connect(services.database_url) as conn:
            PAGE.write_text(updated(PAGE.read_text(), conn))
