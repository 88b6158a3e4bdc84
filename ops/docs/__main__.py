"""`python -m ops.docs`: brings the generated part of docs/sql.md up to date."""

from __future__ import annotations

import psycopg

from ops.bench.harness import scratch_services
from ops.docs import PAGE, updated

with scratch_services() as services, psycopg.connect(services.urls.database_url) as conn:
    PAGE.write_text(updated(PAGE.read_text(), conn))
