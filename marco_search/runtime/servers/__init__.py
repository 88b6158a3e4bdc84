"""HTTP servers as a runtime: what all protocols share.

settings -> servers (connections, allowance, health) -> backend -> fork program
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from marco_search import models
from marco_search.errors import InvalidSettings, ModelRefused
from marco_search.runtime.base import Render, Runtime, RuntimeInfo, Training
from marco_search.runtime.chat import compile_template, read_chat_template
from marco_search.runtime.embedded.files import TRAINING, open_files, training_of
from marco_search.runtime.program import ForkRuntime
from marco_search.runtime.servers.backend import ServersBackend
from marco_search.runtime.servers.connections import api_key_of
from marco_search.runtime.servers.openai import OpenAIServer
from marco_search.runtime.servers.server import Server
from marco_search.runtime.servers.sglang import SGLangServer
from marco_search.settings import Settings, is_host

_OPENAI = "openai+"
"""What addresses of OpenAI-compatible servers begin with; others are SGLang's."""


def open_servers(settings: Settings) -> Runtime:
    """A runtime over the servers that MARCO_RUNTIME lists, separated by commas.

    Raises InvalidSettings for an address or a CA file that can't be used, RuntimeUnavailable
    if no server answers, ModelRefused if they serve another model than MARCO_RUNTIME_MODEL
    and MARCO_RUNTIME_REVISION name, or not all the same.
    """
    openai = settings.runtime.strip().lower().startswith(_OPENAI)
    connect: type[Server] = OpenAIServer if openai else SGLangServer
    urls = _urls(settings.runtime, _OPENAI if openai else "")
    servers = [connect(url, settings) for url in urls]
    backend = ServersBackend(servers)
    try:
        _check_model(settings, backend.info)
        render = _own_template(settings, backend.info, servers)
        info = replace(backend.info, training=_training(settings, backend.info))
    except (InvalidSettings, ModelRefused):
        backend.shutdown()
        raise
    return ForkRuntime(
        backend,
        info,
        render,
        timeout_s=settings.runtime_timeout_s,
        api_key=api_key_of(settings),
    )


def _own_template(
    settings: Settings, info: RuntimeInfo, servers: Sequence[Server]
) -> Render | None:
    """The model's own chat template, from MARCO_MODEL, the server, or files of its on this machine.

    Raises ModelRefused for one that is not valid.
    """
    template = next((server.template for server in servers if server.template), None)
    if template and not settings.model:
        return compile_template(*template)
    folder = models.chosen(settings) if settings.model else _tokenizer_folder(info)
    return read_chat_template(open_files(folder)) if folder else None


def _training(settings: Settings, info: RuntimeInfo) -> Training | None:
    """What the served model was trained from: as set, or as its folder on this machine says.

    Raises InvalidSettings if what is set is not there, ModelRefused for a malformed file.
    """
    if settings.runtime_training is None:
        return training_of(Path(info.model)) if Path(info.model).is_absolute() else None
    found = training_of(settings.runtime_training)
    if found is None:
        raise InvalidSettings(
            f"MARCO_RUNTIME_TRAINING: {settings.runtime_training} is neither a {TRAINING} nor a "
            "folder with one"
        )
    return found


def _tokenizer_folder(info: RuntimeInfo) -> Path | None:
    """Where this machine has the server's tokenizer: its folder or file, or the Hub's cache."""
    name = info.tokenizer or info.model
    if Path(name).is_absolute():
        known = Path(name).is_dir() or (name.endswith(".gguf") and Path(name).is_file())
        return Path(name) if known else None
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # not a name that the Hub could have
        found = try_to_load_from_cache(name, "tokenizer_config.json")
        return Path(found).parent if isinstance(found, str) else None
    return None


def _urls(value: str, scheme: str) -> list[str]:
    given = [part.strip().rstrip("/") for part in value.split(",") if part.strip()]
    urls = [url[len(scheme) :] if url.lower().startswith(scheme) else "" for url in given]
    for url in urls:
        _check_url(url)
    if len(set(urls)) < len(urls) or not urls:
        raise InvalidSettings("MARCO_RUNTIME: name each server once")
    return urls


def _check_url(url: str) -> None:
    """Raises InvalidSettings, without repeating what may hold a secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        usable = bool(host) and is_host(host) and parts.port != 0 and not parts.fragment
        path = parts.path
        usable = usable and path.isascii() and path.isprintable() and " " not in path
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise InvalidSettings("MARCO_RUNTIME: an address has no usable host and port")
    if parts.username or parts.password or parts.query:
        raise InvalidSettings(
            f"MARCO_RUNTIME: {parts.hostname}: an address has no user, password or query; "
            "the key goes into MARCO_RUNTIME_API_KEY"
        )


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
