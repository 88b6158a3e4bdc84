"""Logins of their own for tests: members of a role, as whoever runs the server makes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

Login = Callable[[str], str]
"""The name of a role to the URL of a login that is a member of it."""


@contextmanager
def logins(owner_url: str) -> Iterator[Login]:
    """Makes a login for each role that is asked for, once; drops them at the end."""
    made: dict[str, str] = {}

    def url(role: str) -> str:
        if role not in made:
            made[role] = name = f"test_{uuid.uuid4().hex[:12]}"
            statement = "CREATE ROLE {} LOGIN PASSWORD 'secret' IN ROLE {}"
            with psycopg.connect(owner_url, autocommit=True) as conn:
                conn.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(role)))
        return as_user(owner_url, made[role])

    yield url
    with psycopg.connect(owner_url, autocommit=True) as conn:
        for name in made.values():
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_user(url: str, name: str) -> str:
    """The URL with another login, whose password is "secret"."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{name}:secret@{host}"))
