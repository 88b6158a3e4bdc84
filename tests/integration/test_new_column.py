"""A new column takes a line of the schema, a field and a migration, and a format if it is hashed.

The worked example of docs: here it is done to a copy of the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from marco_search import migrations
from marco_search.audit.formats import NEWEST
from marco_search.store.db import SCHEMA_REVISION

NEXT = f"{int(SCHEMA_REVISION) + 1:04}"
COLUMN = '    _node("surprise", "float8", "How unexpected it was", since={format}),\n'
FORMAT = "    {format}: Format(kinds_of({format}), payload=DEFAULTS_3),\n"
FIELD = "    surprise: float = 0.0\n"
MIGRATION = f'''"""Nodes say how unexpected they were."""

from alembic import op

revision = "{NEXT}"
down_revision = "{SCHEMA_REVISION}"


def upgrade() -> None:
    op.execute("ALTER TABLE nodes ADD surprise double precision NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE nodes ALTER surprise DROP DEFAULT")
'''
CHECK = """
import sys
from uuid import UUID

import psycopg

from marco_search import migrations
from marco_search.audit.canonical import Reader
from marco_search.audit.formats import FORMATS, NEWEST
from marco_search.export.tables import TABLES
from marco_search.migrations import derived
from marco_search.search.tree import Node
from marco_search.store.trail import packing
from ops.docs import PAGE, updated

node = Node(
    node_id=1, parent_id=0, depth=1, round=1, action="step", text="x", tokens=(), confidences=(),
    terminal=False, surprise=0.25,
)
sent = b"".join(packing.copy_nodes(UUID(int=1), 1, [node]))
assert Reader(packing.NODE_COLUMNS).read(sent[19:-2])["surprise"] == 0.25  # head and trailer apart
assert packing.node(**{
    "node_id": 1, "parent_id": 0, "depth": 1, "round": 1, "action": "step", "text": "x",
    "token_ids": [], "token_texts": [], "logprobs": [], "confidences": [], "top_ids": [],
    "top_logprobs": [], "terminal": False, "surprise": 0.25,
}) == node
assert "surprise" in FORMATS[NEWEST].kinds["node"].columns
assert "surprise" not in FORMATS[NEWEST - 1].kinds["node"].columns
assert "surprise" in TABLES["nodes"].columns(text=False)
migrations.upgrade(sys.argv[1])
with psycopg.connect(sys.argv[1]) as conn:
    assert derived.differences(conn, "marco") == []
    for table in ("public.nodes", "audit.nodes"):
        assert conn.execute(
            "SELECT col_description(attrelid, attnum) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attname = 'surprise'", [table]
        ).fetchone() == ("How unexpected it was",)
    assert updated(PAGE.read_text(), conn).count("How unexpected it was") == 2
print(migrations.__file__)
"""


def test_a_new_column_takes_a_line_a_field_and_a_migration(
    database_url: str, tmp_path: Path
) -> None:
    root, number = Path(migrations.__file__).parents[2], NEWEST + 1
    ignore = shutil.ignore_patterns("*.safetensors", "__pycache__")
    copy = tmp_path / "marco_search"
    shutil.copytree(root / "marco_search", copy, ignore=ignore)
    insert(copy / "schema.py", '    _node("depth",', COLUMN.format(format=number))
    check = ["-c", "import marco_search.audit.formats"]
    refused = run(check, tmp_path, root)
    assert "needs that format" in refused.stderr, "it would not be hashed"
    insert(copy / "audit" / "formats.py", f"    {NEWEST}: Format(", FORMAT.format(format=number))
    insert(copy / "search" / "tree.py", "    terminal: bool", FIELD)
    (copy / "migrations" / "versions" / f"v{NEXT}_surprise.py").write_text(MIGRATION)
    done = run(["-c", CHECK, database_url], tmp_path, root)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def run(words: list[str], folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Python with these words and the copy of the package."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | {"PYTHONPATH": str(root)},
        timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip


def insert(path: Path, after: str, line: str) -> None:
    """Put a line behind the first one that begins so."""
    lines = path.read_text().splitlines(keepends=True)
    place = next(i for i, text in enumerate(lines) if text.startswith(after))
    path.write_text("".join([*lines[: place + 1], line, *lines[place + 1 :]]))
