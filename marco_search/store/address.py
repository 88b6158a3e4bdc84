"""The address of a Postgres: read, checked, and shown without its password.

libpq repeats parts of an address that it can't read, and a password with an unescaped
character is such a part: its words about an address are never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from marco_search.errors import InvalidSettings
from marco_search.settings import is_host

CONNECT_TIMEOUT_S = 5
# A machine that is gone is noticed in some ten seconds: packets that nobody acknowledges for so
# long (milliseconds); after 5 s of silence three questions, 2 s apart.
_KEEPALIVE = {
    "tcp_user_timeout": "8000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
_FORM = (
    "DATABASE_URL: not a valid Postgres URL; write postgresql://user:password@host:port/database, "
    "with @ : / ? # [ ] and % in the password percent-encoded (@ is %40)"
)


def parameters(url: str) -> dict[str, str]:
    """The connection parameters in `url`, by libpq's names.

    Raises InvalidSettings, which repeats nothing of it, if it can't be read, or if it reads as
    an address only because a character of the password was not escaped.
    """
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, UnicodeError):
        raise InvalidSettings(_FORM) from None
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    ports = given.get("port", "").split(",")
    names = given.get("host", "").split(",")
    if "@" in given.get("host", "") + path or any(map(_no_port, ports)):
        raise InvalidSettings(_FORM)
    # The one option that psycopg reads itself: its error is no connection error.
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", given.get("connect_timeout", "0").strip()):
        raise InvalidSettings("DATABASE_URL: connect_timeout must be a whole number of seconds")
    if not all(name.startswith("/") or is_host(name) for name in names):
        raise InvalidSettings(_FORM)
    return given


def _no_port(text: str) -> bool:
    return bool(text) and not (text.isdecimal() and 0 < int(text) < 2**16)


def conninfo(url: str, application: str, *, writes: bool = True) -> str:
    """What psycopg connects with; pg_stat_activity shows `application`.

    `writes`: of several hosts one that can be written to is taken, unless the address says
    otherwise. Raises InvalidSettings like `parameters`.
    """
    given = parameters(url)
    defaults = {
        "application_name": application,
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        **_KEEPALIVE,
    }
    if writes and "," in given.get("host", "") + given.get("hostaddr", ""):
        defaults["target_session_attrs"] = "read-write"
    # Whatever PGCLIENTENCODING says: texts are stored as they are.
    return make_conninfo(**(defaults | given | {"client_encoding": "UTF8"}))


def shown(url: str) -> str:
    """`url` as it may be printed and logged: user, hosts, ports and database, nothing else."""
    try:
        given = parameters(url)
    except InvalidSettings:
        return "postgresql://***"
    where = ",".join(_host(host, port) for host, port in hosts(given))
    user = given.get("user", "")
    who = f"{user}{':***' if 'password' in given else ''}@" if user else ""
    return f"postgresql://{who}{where}/{given.get('dbname', '')}"


def hosts(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """(host, port) of each server that connection parameters name; "" for what they leave out."""
    names = given.get("host", given.get("hostaddr", "")).split(",")
    ports = given.get("port", "").split(",")
    ports += ports[-1:] * (len(names) - len(ports))  # one port is that of all hosts
    return list(zip(names, ports, strict=False))


def _host(host: str, port: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name
