"""Every setting of marco-search, read from the environment, in one typed place.

Names are the environment variables. `MARCO_HOME` holds what the embedded services keep;
`DATABASE_URL` and `REDIS_URL` point to real servers instead. `load()` is the only way in:
it turns a bad value into `InvalidSettings` that names the variable.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from marco_search.errors import InvalidSettings

SHORTEST_TOKEN = 16  # characters
_LONGEST_S = 366 * 86_400.0  # also keeps out infinity, which Postgres and sockets do not take
_LARGEST = 2**31 - 1
_LEVELS = "(?i)^(debug|info|warning|error|critical)$"


class Settings(BaseSettings):
    """Frozen settings of one process. Durations are in seconds, sizes in the unit named."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # Services. Unset means: the embedded ones under MARCO_HOME.
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    home: Path = Field(Path(".marco"), validation_alias="MARCO_HOME")
    # The database's roles are named PREFIX_owner, PREFIX_app, PREFIX_auditor, PREFIX_auditor_all.
    role_prefix: str = Field("marco", validation_alias="MARCO_ROLE_PREFIX")

    # Runtime. "embedded" decodes in process; http(s) URLs, separated by commas, are SGLang servers.
    runtime: str = Field("embedded", validation_alias="MARCO_RUNTIME")
    # Folder of a Qwen2-architecture model in Hugging Face format; unset: the pocket model. With
    # SGLang servers only its chat template is used; unset: ChatML.
    model: Path | None = Field(None, validation_alias="MARCO_MODEL")
    # Rows decoded together by the embedded engine.
    embedded_batch_rows: int = Field(64, ge=1, le=1024, validation_alias="MARCO_EMBEDDED_ROWS")
    # Memory of the embedded engine for keys and values: branches in flight and cached prefixes.
    embedded_cache_mib: int = Field(
        256, ge=1, le=_LARGEST, validation_alias="MARCO_EMBEDDED_CACHE_MIB"
    )
    # A branch with all its retries.
    runtime_timeout_s: float = Field(
        120.0, gt=0, le=_LONGEST_S, validation_alias="MARCO_RUNTIME_TIMEOUT_S"
    )
    # To connect to a server; and the longest silence in the middle of its answer.
    runtime_connect_s: float = Field(
        5.0, gt=0, le=_LONGEST_S, validation_alias="MARCO_RUNTIME_CONNECT_S"
    )
    runtime_stall_s: float = Field(
        15.0, gt=0, le=_LONGEST_S, validation_alias="MARCO_RUNTIME_STALL_S"
    )
    # Most branches that one process has in flight on one server; less where it is overloaded.
    runtime_max_in_flight: int = Field(
        256, ge=1, le=4096, validation_alias="MARCO_RUNTIME_MAX_IN_FLIGHT"
    )
    runtime_api_key: SecretStr | None = Field(None, validation_alias="MARCO_RUNTIME_API_KEY")
    # TLS: whether to check a server's certificate, and a file of certificates to trust.
    runtime_verify_tls: bool = Field(True, validation_alias="MARCO_RUNTIME_VERIFY_TLS")
    runtime_ca: Path | None = Field(None, validation_alias="MARCO_RUNTIME_CA")
    # What the servers must serve (SGLang's model_path and weight_version); unset: anything.
    runtime_model: str | None = Field(None, validation_alias="MARCO_RUNTIME_MODEL")
    runtime_revision: str | None = Field(None, validation_alias="MARCO_RUNTIME_REVISION")

    # Queue and worker.
    tenant: str = Field("default", min_length=1, max_length=64, validation_alias="MARCO_TENANT")
    queue: str = Field("marco", min_length=1, max_length=64, validation_alias="MARCO_QUEUE")
    worker_processes: int = Field(1, ge=1, le=256, validation_alias="MARCO_WORKER_PROCESSES")
    # A worker that has not extended its lease for this long is taken for lost.
    lease_s: float = Field(45.0, gt=0, le=_LONGEST_S, validation_alias="MARCO_LEASE_S")
    heartbeat_s: float = Field(10.0, gt=0, le=_LONGEST_S, validation_alias="MARCO_HEARTBEAT_S")
    # Attempts that errors which may pass can end; then the job is dead.
    max_attempts: int = Field(8, ge=1, le=100, validation_alias="MARCO_MAX_ATTEMPTS")
    # Workers that a job may cost; then it is dead.
    quarantine_after: int = Field(2, ge=1, le=100, validation_alias="MARCO_QUARANTINE_AFTER")
    # Told to stop, a worker has this long to finish its rounds; then their branches are aborted.
    stop_s: float = Field(25.0, ge=0, le=_LONGEST_S, validation_alias="MARCO_STOP_S")
    # An attempt longer than this gives its job back after the round; unset: as long as it takes.
    attempt_s: float | None = Field(None, gt=0, le=_LONGEST_S, validation_alias="MARCO_ATTEMPT_S")
    # Whether workers also do what `marco scheduler` does. With a scheduler they need not.
    worker_sweeps: bool = Field(True, validation_alias="MARCO_WORKER_SWEEPS")
    # Whether Celery's own tools (inspect, control, flower) may steer workers, and stop them.
    remote_control: bool = Field(False, validation_alias="MARCO_WORKER_REMOTE_CONTROL")
    # Waiting this long is worth one of the three levels of priority.
    aging_s: float = Field(600.0, ge=0, le=_LONGEST_S, validation_alias="MARCO_AGING_S")
    # Most queued jobs, of all tenants and of each that has no quota of its own; unset: any number.
    max_queued: int | None = Field(100_000, ge=1, le=_LARGEST, validation_alias="MARCO_MAX_QUEUED")
    tenant_max_queued: int | None = Field(
        None, ge=1, le=_LARGEST, validation_alias="MARCO_TENANT_MAX_QUEUED"
    )
    log_level: str = Field("INFO", pattern=_LEVELS, validation_alias="MARCO_LOG_LEVEL")

    # The web console asks for it; where it listens on more than loopback one is made if unset.
    console_token: SecretStr | None = Field(None, validation_alias="MARCO_CONSOLE_TOKEN")

    @field_validator("database_url", "redis_url", mode="before")
    @classmethod
    def _stripped(cls, value: object) -> object:
        """Files of secrets end with a line break."""
        return (value.strip() or None) if isinstance(value, str) else value


@cache
def load() -> Settings:
    """The settings of this process.

    Raises InvalidSettings naming each variable whose value can't be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        # The value is left out on purpose: it may be a secret.
        lines = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise InvalidSettings("; ".join(lines)) from None


def worker_refusal(settings: Settings) -> str | None:
    """Why a worker would not start with these settings; None: it would."""
    if settings.heartbeat_s * 2 <= settings.lease_s:
        return None
    return (
        f"MARCO_HEARTBEAT_S: {settings.heartbeat_s:g} is too long for MARCO_LEASE_S "
        f"{settings.lease_s:g}; at least two heartbeats must fit into a lease"
    )


def console_refusal(settings: Settings) -> str | None:
    """Why the console would not start with these settings; None: it would."""
    token = settings.console_token.get_secret_value() if settings.console_token else ""
    if not token or len(token) >= SHORTEST_TOKEN:
        return None
    return f"MARCO_CONSOLE_TOKEN: at least {SHORTEST_TOKEN} characters"


def is_host(name: str) -> bool:
    """Whether `name` can be looked up at all. Python raises UnicodeError or ValueError else."""
    try:
        name.encode("idna")  # refuses empty labels (a..b) and those of more than 63 characters
    except UnicodeError:
        return False
    return name.isprintable() and " " not in name


def without_password(url: str) -> str:
    """`url` as it may be shown or logged: passwords, if any, replaced by ***.

    Also in a URL that is no good: what stands before the last @ may be a password that was
    not escaped.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"  # no URL: any part of it may be the password
    who, at, where = rest.rpartition("@")
    user, colon, _ = who.partition(":")
    shown = f"{user}:***@{where}" if at and colon else rest
    return scheme + separator + _PASSWORD_IN_QUERY.sub(r"\1***", shown)


_PASSWORD_IN_QUERY = re.compile(r"(?i)([?&](?:ssl)?password=)[^&]*")
