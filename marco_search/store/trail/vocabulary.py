"""What the candidates read: texts of tokens by the model's own numbers, each kept once.

The trail has ids only of what the model could have said instead. Their texts come with the
answers of the runtime and are kept beside the trail, once for a model's revision. They are no
part of what is hashed: the ids are, and the model's tokenizer can spell those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from threading import Lock

from psycopg.sql import SQL, Identifier

from marco_search.search.tree import Node
from marco_search.store.db import Conn


class KnownTokens:
    """The ids that this process has written, by model and revision. Shared by threads."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], set[int]] = {}
        self._lock = Lock()

    def missing(self, model: str, revision: str, texts: Mapping[int, str]) -> dict[int, str]:
        """Those of `texts` that are not known to be stored."""
        with self._lock:
            known = self._ids.get((model, revision), set())
            return {i: texts[i] for i in texts.keys() - known}

    def add(self, model: str, revision: str, texts: Mapping[int, str]) -> None:
        """To be called once these are committed."""
        with self._lock:
            self._ids.setdefault((model, revision), set()).update(texts)


def write(conn: Conn, model: str, revision: str, texts: Mapping[int, str]) -> None:
    """Store texts by token id; those that are there stay as they are."""
    if not texts:
        return
    # In order of id: two workers that write the same wait for each other, never in a circle.
    conn.execute(
        "INSERT INTO vocabulary (model, revision, token_id, text)"
        " SELECT %s, %s, t.token_id, t.text FROM unnest(%s::integer[], %s::text[])"
        " AS t (token_id, text) ORDER BY t.token_id ON CONFLICT DO NOTHING",
        [model, revision, list(texts), list(texts.values())],
    )


def read(
    conn: Conn, model: str, revision: str, nodes: Iterable[Node], *, schema: str = "public"
) -> dict[int, str]:
    """The texts of these nodes' candidates by token id, as far as they are stored."""
    ids = {i for node in nodes for token in node.tokens for i, _ in token.top}
    query = SQL(
        "SELECT token_id, text FROM {} WHERE model = %s AND revision = %s AND token_id = ANY(%s)"
    ).format(Identifier(schema, "vocabulary"))
    return dict(conn.execute(query, [model, revision, sorted(ids)]).fetchall()) if ids else {}
