"""What REDIS_URL says, checked before anything is sent there.

Publishers, workers, schedulers and the doctor connect with what is parsed here, so that all of
them ask for the same certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redis import Redis

from marco_search.errors import InvalidSettings
from marco_search.settings import is_host

_FORM = (
    "write redis://:password@host:port/0 (rediss:// for TLS), with the characters /?#@:% of a "
    "password as %2F %3F %23 %40 %3A %25"
)
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs",
                "ssl_check_hostname")  # fmt: skip
_REQUIREMENTS = ("required", "optional", "none")
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where Redis is, and who asks. `tls`: the options of redis-py's SSLConnection, or None."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    tls: dict[str, Any] | None

    @property
    def url(self) -> str:
        """The address as a URL, without the options of TLS."""
        scheme = "redis" if self.tls is None else "rediss"
        user, password = quote(self.username or "", ""), quote(self.password or "", "")
        login = f"{user}:{password}@" if user or password else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{login}{host}:{self.port}/{self.database}"

    def client(self, **options: Any) -> Redis:
        """A client of redis-py with these options. Connects when first used."""
        return Redis(
            host=self.host,
            port=self.port,
            db=self.database,
            username=self.username,
            password=self.password,
            ssl=self.tls is not None,
            **(self.tls or {}),
            **options,
        )


def parse(url: str) -> RedisAddress:
    """The parts of `url`. Raises InvalidSettings; the message holds nothing of the URL."""
    try:
        url.encode()  # bytes of the environment that are not UTF-8
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused("not a Redis URL") from None
    if parts.scheme not in ("redis", "rediss"):
        raise _refused("must look like redis://... or rediss://...")
    # What follows an unescaped / ? or # of a password ends here.
    if not host or port == 0 or not is_host(unquote(host)):
        raise _refused("no usable host and port")
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _refused("not a Redis URL")
    return RedisAddress(
        host=unquote(host),
        port=6379 if port is None else port,
        database=_database(parts.path),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=_tls(parts.scheme, parts.query),
    )


def _database(path: str) -> int:
    number = path.removeprefix("/").removesuffix("/") or "0"
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        raise _refused("what follows the host must be the number of a database, as in host:6379/0")
    return int(number)


def _tls(scheme: str, query: str) -> dict[str, Any] | None:
    given = parse_qsl(query, keep_blank_values=True)
    if any(name not in _TLS_OPTIONS for name, _ in given) or (given and scheme != "rediss"):
        raise _refused(f"only rediss:// takes options, and only {', '.join(_TLS_OPTIONS)}")
    if scheme != "rediss":
        return None
    options: dict[str, Any] = {"ssl_cert_reqs": "required", **dict(given)}
    options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
    if options["ssl_cert_reqs"] not in _REQUIREMENTS:
        raise _refused(f"ssl_cert_reqs must be one of {', '.join(_REQUIREMENTS)}")
    checks = str(options.get("ssl_check_hostname", "true")).lower()
    if checks not in _FLAGS:
        raise _refused("ssl_check_hostname must be true or false")
    return options | {"ssl_check_hostname": _FLAGS[checks]}


def _refused(why: str) -> InvalidSettings:
    return InvalidSettings(f"REDIS_URL: {why}; {_FORM}")
