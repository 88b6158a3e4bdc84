"""What reads input from outside, as functions of bytes that pass, or raise an error of ours.

A target's seeds are the files of corpus/<its name>/: valid inputs, and those that once failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest import mock

import httpx

from marco_search import broker, profiles, settings
from marco_search.api import create_app
from marco_search.api.access import Service
from marco_search.audit import anchors
from marco_search.cli.job_input import read_lines
from marco_search.errors import MarcoError
from marco_search.evaluation import data_sets, traces
from marco_search.export import archive
from marco_search.files import digest
from marco_search.jobs import payload_hash
from marco_search.kinds import KINDS, job_from_json_line
from marco_search.runtime.embedded.backend import load_model
from marco_search.runtime.reply import Completion, read_completion
from marco_search.runtime.servers import openai_answers as openai
from marco_search.scorers import NoScore, RewardModel, verdict
from marco_search.store import postgres
from marco_search.store.db import Database
from marco_search.store.seal import archives
from producer import AsyncProducer
from tests.tiny_gguf import write_gguf
from tests.tiny_model import write_model

HERE = Path(__file__).parent
ALLOWED = (MarcoError, NoScore)
_ARCHIVE = HERE.parent / "data" / "v0_1_0" / "archive"
_LONGEST_MESSAGE = 50_000  # a file of jobs names a hundred lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader of outside input, and where valid inputs come from beside its corpus."""

    read: Callable[[bytes], None]
    built: Callable[[], Sequence[bytes]] = tuple
    largest: int = 2**16  # bytes of an input


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, and what it builds."""
    files = sorted((HERE / "corpus" / name).glob("*"))
    return [*(file.read_bytes() for file in files), *TARGETS[name].built()]


def check(name: str, data: bytes) -> None:
    """Give a target an input. Fails unless it is accepted, or refused in words."""
    try:
        TARGETS[name].read(data)
    except ALLOWED as error:
        message = str(error)
        assert message.strip(), f"{type(error).__name__} without a word"
        assert len(message) <= _LONGEST_MESSAGE, message[:200]


# -- jobs ---------------------------------------------------------------------------------


def _job_line(data: bytes) -> None:
    job = job_from_json_line(data, 1)
    stored = job.model_dump_json()
    assert "\\u0000" not in stored and payload_hash(job)
    assert KINDS[job.kind].model.model_validate_json(stored) == job


def _http(data: bytes) -> None:
    """A request: [method, address, body], whose body may be the text of a form; else a body."""
    try:
        request = _request(*json.loads(data))
    except (httpx.InvalidURL, ValueError, TypeError, AttributeError, RecursionError):
        request = _request("POST", "/v1/chat/completions", data)
    answer = asyncio.run(_answered(request))
    assert answer.status_code != 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"] and answer.json()["error"]["code"]


def _request(method: str, address: str, given: Any) -> httpx.Request:
    kind = "multipart/form-data; boundary=x" if isinstance(given, str) else "application/json"
    head = {"Authorization": "Bearer key", "Content-Type": kind}
    text = given if isinstance(given, str | bytes) else json.dumps(given)
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return httpx.Request(method, f"http://api{address}", headers=head, content=content)


async def _answered(request: httpx.Request) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(_api())) as client:
        return await client.send(request)


@cache
def _api() -> Any:
    """The API on the database at FUZZ_DATABASE_URL, or on one that is away."""
    url = os.environ.get("FUZZ_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    here = settings.Settings.model_validate(
        {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1", "MARCO_API_WAIT_S": 0.01}
    )
    database = Database(url, application="fuzz")
    return create_app(Service(here, database, AsyncProducer(settings=here), local_key="key"))


def _job_file(data: bytes) -> None:
    with _file("jobs.jsonl", data) as path:
        read_lines(str(path))


def _answer(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for kind in KINDS.values():
        found = kind.read(text)
        if found is not None:
            assert found.key and found.display
            kind.merge([(found.key, 0.5), (found.key, 0.1)])


# -- settings -----------------------------------------------------------------------------


def _settings(data: bytes) -> None:
    given = _strings(data)
    with mock.patch.dict(os.environ, given, clear=True):
        settings.load.cache_clear()
        try:
            found = settings.load()
        finally:
            settings.load.cache_clear()
    if found.database_url:
        postgres.hosts(postgres.parameters(found.database_url.get_secret_value()))
    if found.redis_url:
        broker.parse_address(found.redis_url.get_secret_value())


def _strings(data: bytes) -> dict[str, str]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = {"MARCO_RUNTIME": data.decode("utf-8", "replace")}
    pairs = value.items() if isinstance(value, dict) else ()
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in pairs}
    return {
        name: text.replace("\0", "").encode("utf-8", "replace").decode()
        for name, text in texts.items()
        if name.isidentifier() and name.isascii()
    }


def _profile(data: bytes) -> None:
    made = profiles.parse(data.decode("utf-8", "replace"), "profile.toml")
    assert profiles.parse(profiles.dumps(made), "again") == made


# -- what servers say ---------------------------------------------------------------------


def _object(data: bytes) -> dict[str, Any]:
    """As marco_search.runtime.servers reads a body: no object is refused before."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sglang(data: bytes) -> None:
    reply = _object(data)
    meta = reply.get("meta_info")
    _storable(read_completion(reply.get("text"), meta if isinstance(meta, dict) else {}))


def _openai(data: bytes) -> None:
    reply = _object(data)
    for trims in (False, True):
        with contextlib.suppress(MarcoError):
            found = openai.read(reply, lambda ids: [f"w{i}" for i in ids], trims=trims).as_sglang(
                ()
            )
            _storable(read_completion(found["text"], found["meta_info"]))


def _storable(found: Completion) -> None:
    for text in (found.text, *(t.text for t in found.tokens), *found.texts.values()):
        assert "\0" not in text and text.encode() is not None
    assert all(-3.5e38 < token.logprob < 1.0 for token in found.tokens)


def _rewards(data: bytes) -> None:
    model = RewardModel(
        settings.Settings.model_validate({"MARCO_REWARD_URL": "http://127.0.0.1:1/classify"}),
        whole=False,
    )
    for count in (1, 2):
        with contextlib.suppress(NoScore):
            assert all(0.0 <= score <= 1.0 for score in model._read(data, count))


def _verdict(data: bytes) -> None:
    assert 0.0 <= verdict(data) <= 1.0


# -- files --------------------------------------------------------------------------------


@contextlib.contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


def _beside(valid: Path, folder: Path, name: str, data: bytes) -> Path:
    """A folder with this file and links to the others of a valid folder."""
    for file in valid.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / name).unlink()
    (folder / name).write_bytes(data)
    return folder


def _anchor(data: bytes) -> None:
    with _file("anchor.json", data) as path:
        anchors.read(path)


def _manifest(data: bytes) -> None:
    archives.parse(data.decode("utf-8", "replace"))


def _data_set(suffix: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with _file(f"set.{suffix}", data) as path:
            data_sets.load(str(path))

    return read


def _traces(data: bytes) -> None:
    with _file("traces.jsonl", data) as path:
        traces.read(path)


def _archived(name: str) -> Target:
    """A file of an archive whose list fits it, as whoever can write both would leave it."""

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = _beside(_month(), Path(temporary), name, data)
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").unlink()
            manifest["files"][name]["sha256"] = digest(folder / name)
            (folder / "manifest.json").write_text(json.dumps(manifest))
            archive.check_archive(folder)

    return Target(read=read, built=lambda: [(_month() / name).read_bytes()])


def _month() -> Path:
    return next(path.parent for path in _ARCHIVE.rglob("manifest.json"))


@cache
def _model() -> Path:
    return write_model(Path(tempfile.mkdtemp(prefix="marco-fuzz-")), hidden=16, heads=2)


def _model_file(name: str) -> Target:
    """A file of a model folder whose other files are right."""

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            _load(_beside(_model(), Path(temporary), name, data))

    return Target(read=read, built=lambda: [(_model() / name).read_bytes()])


def _gguf(data: bytes) -> None:
    with _file("model.gguf", data) as path:
        _load(path)


def leave_nothing() -> None:
    """Delete what the targets were built from."""
    if _model.cache_info().currsize:
        rmtree(_model())
    _model.cache_clear()


@cache
def _gguf_seed() -> bytes:
    return write_gguf(_model() / "tiny.gguf", _model()).read_bytes()


def _load(path: Path) -> None:
    load_model(path).tokenizer.encode("One and one is two.")


TARGETS = {
    "job_line": Target(read=_job_line),
    "http": Target(read=_http),
    "job_file": Target(read=_job_file),
    "answer": Target(read=_answer, largest=2**14),
    "settings": Target(read=_settings),
    "profile": Target(read=_profile),
    "sglang": Target(read=_sglang),
    "openai": Target(read=_openai),
    "rewards": Target(read=_rewards),
    "verdict": Target(read=_verdict),
    "anchor": Target(read=_anchor),
    "manifest": Target(read=_manifest),
    "archive_links": _archived("link.parquet"),
    "archive_nodes": _archived("node.parquet"),
    "data_set_jsonl": Target(read=_data_set("jsonl")),
    "data_set_tsv": Target(read=_data_set("tsv")),
    "traces": Target(read=_traces),
    "model_config": _model_file("config.json"),
    "model_tokenizer": _model_file("tokenizer.json"),
    "model_weights": _model_file("model.safetensors"),
    "model_gguf": Target(read=_gguf, built=lambda: [_gguf_seed()], largest=2**20),
}
