"""SGLang servers as a runtime.

settings -> servers (connections, allowance, health) -> pool -> backend -> fork program
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from marco_search.errors import InvalidSettings, ModelRefused
from marco_search.runtime.base import RuntimeInfo
from marco_search.runtime.chat import render_chatml
from marco_search.runtime.fork_runtime import ForkRuntime
from marco_search.runtime.sglang.backend import EndpointBackend
from marco_search.runtime.sglang.http import Access
from marco_search.runtime.sglang.pool import Pool
from marco_search.runtime.sglang.server import Server
from marco_search.search.branches import Message
from marco_search.settings import Settings, is_host

__all__ = ["open_endpoint"]


def open_endpoint(settings: Settings) -> ForkRuntime:
    """A runtime over the servers that MARCO_RUNTIME lists, separated by commas.

    Raises InvalidSettings for an address or a CA file that can't be used, RuntimeUnavailable
    if no server answers, ModelRefused if they serve another model than MARCO_RUNTIME_MODEL
    and MARCO_RUNTIME_REVISION name, or not all the same.
    """
    timeout_s = settings.runtime_timeout_s
    access = Access(
        connect_s=settings.runtime_connect_s,
        stall_s=settings.runtime_stall_s,
        api_key=_api_key(settings),
        verify_tls=settings.runtime_verify_tls,
        ca=settings.runtime_ca,
    )
    pool = Pool(
        [
            # A branch that takes half its time limit says that the server has too much to do.
            Server(url, access, most_in_flight=settings.runtime_max_in_flight, slow_s=timeout_s / 2)
            for url in _urls(settings.runtime)
        ]
    )
    try:
        _check_model(settings, pool.info)
    except ModelRefused:
        pool.close()
        raise
    backend = EndpointBackend(pool, timeout_s=timeout_s)
    return ForkRuntime(
        backend, pool.info, _template(settings), timeout_s=timeout_s, api_key=access.api_key
    )


def _api_key(settings: Settings) -> str | None:
    if settings.runtime_api_key is None:
        return None
    key = settings.runtime_api_key.get_secret_value().strip()  # a mounted secret ends in a newline
    if not (key.isascii() and key.isprintable()):
        # Said here: the HTTP client's message would repeat the key.
        raise InvalidSettings("MARCO_RUNTIME_API_KEY: has characters that no header can hold")
    return key or None


def _template(settings: Settings) -> Callable[[Sequence[Message]], str]:
    """ChatML, which Qwen2 and Marco-o1 take; with MARCO_MODEL the template in that folder."""
    if settings.model is None:
        return render_chatml
    from marco_search.runtime.chat import read_chat_template

    return read_chat_template(settings.model).render


def _urls(value: str) -> list[str]:
    urls = [part.strip().rstrip("/") for part in value.split(",") if part.strip()]
    for url in urls:
        try:
            parts = urlsplit(url)
            path = parts.path
            usable = parts.port != 0 and is_host(parts.hostname or "") and " " not in path
            usable = usable and path.isascii() and path.isprintable() and not parts.fragment
        except ValueError:
            usable = False
        if not usable:
            raise InvalidSettings("MARCO_RUNTIME: an address has no usable host and port")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidSettings(
                "MARCO_RUNTIME: use embedded, or addresses of SGLang servers separated by commas, "
                "such as http://127.0.0.1:30000"
            )
        if parts.username or parts.password or parts.query:
            raise InvalidSettings(
                f"MARCO_RUNTIME: {parts.hostname}: an address has no user, password or query; "
                "the key goes into MARCO_RUNTIME_API_KEY"
            )
    if len(set(urls)) < len(urls) or not urls:
        raise InvalidSettings("MARCO_RUNTIME: name each server once")
    return urls


def _check_model(settings: Settings, info: RuntimeInfo) -> None:
    wanted = {
        "MARCO_RUNTIME_MODEL": (settings.runtime_model, info.model),
        "MARCO_RUNTIME_REVISION": (settings.runtime_revision, info.revision),
    }
    for name, (asked, served) in wanted.items():
        if asked is not None and asked != served:
            raise ModelRefused(
                f"the server at MARCO_RUNTIME serves {served}, {name} asks for {asked}: "
                "point MARCO_RUNTIME to another server or correct the name"
            )
