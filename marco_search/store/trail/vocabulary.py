"""Texts of candidates by token id, each stored once.

The trail has only the ids of what the model could have generated instead. Their texts come with
the replies of the runtime and are stored beside the trail, once per revision of a model. They are
not hashed: the ids are, and the model's tokenizer has their texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from marco_search.search.tree import Node
from marco_search.store.db import Conn


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
    query = f"""SELECT token_id, text FROM {schema}.vocabulary
        WHERE model = %s AND revision = %s AND token_id = ANY (%s)"""  # noqa: S608  # constants
    given = [model, revision, sorted(ids)]
    return dict(conn.execute(query.encode(), given).fetchall()) if ids else {}
