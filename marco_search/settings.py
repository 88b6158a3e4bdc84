"""Every setting of marco-search, read from the environment, in one typed place.

A setting's variable is MARCO_ and its name, except for those of the services. Settings are only
read by `load()`, which turns a bad value into `InvalidSettings` naming the variable.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from marco_search.errors import InvalidSettings
from marco_search.text import HIDDEN, redacted

SHORTEST_TOKEN = 16  # characters
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_MUST_BE = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a JSON object",
    "string_too_short": "must not be empty",
    "string_unicode": "must be UTF-8",
    "ip_any_network": "must be networks such as 10.1.0.0/16, separated by commas",
}
RENAMED = {"MARCO_WORKER_SWEEPS": "MARCO_WORKER_SCHEDULER"}
"""Old names of settings: they work for one more version, with a warning."""

# The limit also rejects infinity, which Postgres and sockets do not accept.
Seconds = Annotated[float, Field(ge=0, le=366 * 86_400.0)]
SomeSeconds = Annotated[float, Field(gt=0, le=366 * 86_400.0)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


def _stripped(value: object) -> object:
    """Files with secrets often end with a line break."""
    return (value.strip() or None) if isinstance(value, str) else value


Secret = Annotated[SecretStr | None, BeforeValidator(_stripped)]


def _from_json(example: str) -> BeforeValidator:
    """Reads a value that is given as JSON."""

    def read(value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError(f"not JSON, such as {example}") from None

    return BeforeValidator(read)


def _networks(value: object) -> object:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


Networks = Annotated[tuple[IPvAnyNetwork, ...], BeforeValidator(_networks)]
Target = Annotated[str, Field(pattern="^https?://")] | Annotated[list[str], Field(min_length=1)]
Overrides = Annotated[dict[str, Any], _from_json('{"top_p": 0.9}')]
Verifiers = Annotated[dict[Name, Target], _from_json('{"name": ["command", "word"]}')]


def _fits_a_url(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", value.get_secret_value()):
        raise ValueError("a password needs letters, digits, - . _ and ~ only: URLs hold it")
    return value


class Login(BaseModel):
    """A login of the database: its password, and the roles that it is a member of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    password: Annotated[SecretStr, AfterValidator(_fits_a_url)]
    roles: list[Name] = []


Logins = Annotated[
    dict[Name, Login],
    _from_json('{"marco_worker": {"password": "...", "roles": ["marco_app"]}}'),
]


class Settings(BaseModel):
    """Frozen settings of one process. Durations are in seconds, sizes in the unit named."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        validate_default=True,
        alias_generator=AliasGenerator(validation_alias=lambda name: f"MARCO_{name.upper()}"),
    )

    # Services. Unset means: the embedded ones under MARCO_HOME.
    database_url: Secret = Field(None, validation_alias="DATABASE_URL", description="Postgres")
    redis_url: Secret = Field(None, validation_alias="REDIS_URL", description="Redis")
    home: Path = Field(Path(".marco"), description="Folder of the embedded services")
    role_prefix: str = Field(
        "marco", description="The database roles are PREFIX_owner, _app, _redactor, ..."
    )
    logins: Logins = Field(
        {},
        description="Logins that `marco migrate`, run by a superuser, makes or gives a new "
        "password, as JSON: name to password and roles",
    )

    # Runtime
    runtime: str = Field(
        "embedded",
        description="embedded, or URLs of servers, separated by commas: http://... of SGLang, "
        "openai+http://.../v1 of OpenAI-compatible ones",
    )
    model: Path | None = Field(
        None,
        description="A Llama, Qwen2 or Qwen3 model: a Hugging Face folder, a GGUF file, or an "
        "installed model's name; unset: the default of `marco model`. With servers only its "
        "chat template is used; unset: ChatML",
    )
    profile: str | None = Field(
        None, description="Name or file of the model's profile; unset: by the model's name"
    )
    overrides: Overrides = Field(
        {}, description="Fields of the profile or of SearchConfig to override: a JSON object"
    )
    embedded_rows: int = Field(
        64, ge=1, le=1024, description="Rows that the embedded engine decodes together"
    )
    embedded_threads: int = Field(
        1, ge=1, le=256, description="Threads that decode a large model (weights over 64 MiB)"
    )
    embedded_cache_mib: Count = Field(
        256, description="Memory for keys and values: branches in flight and cached prefixes"
    )
    runtime_timeout_s: SomeSeconds = Field(120.0, description="For a branch with all its retries")
    runtime_connect_s: SomeSeconds = Field(5.0, description="To connect to a server")
    runtime_stall_s: SomeSeconds = Field(15.0, description="Longest silence within an answer")
    runtime_max_in_flight: int = Field(
        256,
        ge=1,
        le=4096,
        description="Maximum number of branches of one process in flight on one server",
    )
    runtime_api_key: Secret = Field(None, description="The servers' API key")
    runtime_verify_tls: bool = Field(True, description="Check a server's certificate")
    runtime_ca: Path | None = Field(None, description="File of certificates to trust")
    runtime_model: str | None = Field(
        None, description="What servers must serve (SGLang's model_path); unset: anything"
    )
    runtime_revision: str | None = Field(
        None, description="The weight_version they must serve; unset: any"
    )
    runtime_training: Path | None = Field(
        None,
        description="What their model was fine-tuned from and on: its marco_training.json, or the "
        "folder with it; unset: the model's own folder, if it is on this machine",
    )

    # Scores from outside (docs/rewards.md)
    reward_url: Secret = Field(
        None,
        description="Address of a reward model for the rewards prm-*, such as SGLang's "
        "http://host:30001/classify",
    )
    reward_api_key: Secret = Field(None, description="Its API key")
    reward_timeout_s: SomeSeconds = Field(
        20.0, description="For the scores of a round, with all retries"
    )
    reward_template: str | None = Field(
        None,
        pattern=r"\{steps\}",
        description="What the reward model reads, with {question} and {steps}; unset: ChatML",
    )
    reward_separator: str | None = Field(None, description="After each step; unset: a line break")
    reward_scale: Literal["probability", "logit"] = Field(
        "probability", description="What its scores are; logits go through the sigmoid"
    )
    verifiers: Verifiers = Field(
        {},
        description="Verifiers that jobs may name, as JSON: name to a command (a list of words) "
        "or to an address",
    )
    verifier_api_key: Secret = Field(None, description="API key of those addresses")
    verifier_timeout_s: SomeSeconds = Field(10.0, description="For a verifier's verdict")

    # Queue and worker
    tenant: Name = Field("default", description="The tenant whose jobs are submitted and shown")
    queue: Name = Field("marco", description="Name of the queue in Redis")
    worker_processes: int = Field(1, ge=1, le=256, description="Jobs that a worker runs at once")
    lease_s: SomeSeconds = Field(
        45.0, description="A worker that has not extended its lease for this long counts as lost"
    )
    heartbeat_s: SomeSeconds = Field(10.0, description="Between heartbeats")
    max_attempts: int = Field(
        8, ge=1, le=100, description="Attempts that retryable errors may end before a job is dead"
    )
    quarantine_after: int = Field(
        2, ge=1, le=100, description="Workers that a job may crash before it is dead"
    )
    stop_s: Seconds = Field(
        25.0, description="For the rounds in progress at a shutdown; then branches are aborted"
    )
    attempt_s: SomeSeconds | None = Field(
        None, description="A longer attempt releases its job after the round; unset: never"
    )
    worker_scheduler: bool = Field(
        True, description="Whether workers also do what `marco scheduler` does"
    )
    remote_control: bool = Field(
        False,
        validation_alias="MARCO_WORKER_REMOTE_CONTROL",
        description="Whether Celery's own tools (inspect, control, flower) may stop workers",
    )
    aging_s: Seconds = Field(
        600.0, description="Waiting this long is worth one of the three levels of priority"
    )
    max_queued: Count | None = Field(
        100_000, description="Maximum number of queued jobs of all tenants"
    )
    tenant_max_queued: Count | None = Field(
        None,
        description="Maximum number of queued jobs of a tenant without its own quota; unset: any",
    )
    # Webhooks (docs/webhooks.md)
    webhook_networks: Networks = Field(
        (),
        description="Non-public networks that webhooks may reach, separated by "
        "commas: 10.1.0.0/16,127.0.0.1",
    )
    webhook_http: bool = Field(False, description="Whether webhooks may use plain HTTP")
    webhook_attempts: int = Field(
        16, ge=1, le=100, description="Attempts after which a delivery counts as failed"
    )
    webhook_delay_s: SomeSeconds = Field(
        5.0, description="Until the second attempt; doubled with each, up to six hours"
    )
    webhook_timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(
        10.0, description="For a receiver to respond"
    )

    health_file: Path | None = Field(
        None, description="Touched every few seconds by a healthy worker or scheduler"
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Where a worker, scheduler or API serves its metrics; unset: it does not",
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="The address that this port is opened on"
    )
    log_level: str = Field("INFO", pattern="(?i)^(debug|info|warning|error|critical)$")

    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the logs of workers, scheduler, console and API"
    )

    console_token: Secret = Field(
        None,
        description="What the web console asks for. Where it listens on more than loopback one is "
        "made if unset",
    )

    api_wait_s: SomeSeconds = Field(
        600.0, description="Longest time that a request to `marco serve` waits for its job"
    )
    api_files_mb: Count = Field(
        1000, description="Maximum total size of a tenant's uploaded files, in MiB"
    )

    @model_validator(mode="before")
    @classmethod
    def _add_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        found = {name.upper(): value for name, value in os.environ.items() if value}
        return found | given

    @property
    def profiles(self) -> Path:
        """Folder of the user's own profiles."""
        return self.home / "profiles"


@cache
def load() -> Settings:
    """The settings of this process.

    Raises InvalidSettings naming each variable whose value can't be used.
    """
    renamed = {}
    for old, new in RENAMED.items():
        if os.environ.get(old) and not os.environ.get(new):  # empty is unset
            warnings.warn(f"{old} is now {new}", FutureWarning, stacklevel=2)
            renamed[new] = os.environ[old]
    try:
        return Settings(**renamed)
    except ValidationError as error:
        # The value is left out on purpose: it may be a secret.
        lines = dict.fromkeys(f"{e['loc'][0]}: {_reason(e)}" for e in error.errors())
        raise InvalidSettings("; ".join(lines)) from None


def _reason(error: ErrorDetails) -> str:
    kind, limits = error["type"], error.get("ctx", {})
    if error["loc"][0] == "MARCO_LOG_LEVEL":
        return "must be debug, info, warning, error or critical"
    if error["loc"][0] == "MARCO_REWARD_TEMPLATE":
        return "must contain {steps}"
    if error["loc"][0] == "MARCO_VERIFIERS" and kind != "value_error":
        return "each must be a command (a list of words) or an address (http://...), with a name"
    if error["loc"][0] == "MARCO_LOGINS" and kind != "value_error":
        return "each must have a password, and may have roles"
    for name, words in _BOUNDS.items():
        if name in limits:
            return f"must be {words} {limits[name]:,.12g}"
    if kind == "string_too_long":
        return f"must have at most {limits['max_length']} characters"
    if kind == "literal_error":
        return f"must be {limits['expected']}"
    return _MUST_BE.get(kind, error["msg"].removeprefix("Value error, "))


def worker_refusal(settings: Settings) -> str | None:
    """Why a worker would refuse to start with these settings; None if it would start."""
    if settings.heartbeat_s * 2 <= settings.lease_s:
        return None
    return (
        f"MARCO_HEARTBEAT_S: {settings.heartbeat_s:g} is too long for MARCO_LEASE_S "
        f"{settings.lease_s:g}; at least two heartbeats must fit into a lease"
    )


def console_refusal(settings: Settings) -> str | None:
    """Why the console would refuse to start with these settings; None if it would start."""
    token = settings.console_token.get_secret_value() if settings.console_token else ""
    if not token or len(token) >= SHORTEST_TOKEN:
        return None
    return f"MARCO_CONSOLE_TOKEN: at least {SHORTEST_TOKEN} characters"


def is_host(name: str) -> bool:
    """Whether `name` can be looked up at all; else Python raises UnicodeError or ValueError."""
    try:
        name.encode("idna")  # refuses empty labels (a..b) and those of more than 63 characters
    except UnicodeError:
        return False
    return name.isprintable() and " " not in name


def without_password(url: str) -> str:
    """`url` for display and logs: passwords are replaced by ***."""
    # Without a scheme it is not a URL: any part of it may be the password.
    return redacted(url) if "://" in url else HIDDEN
