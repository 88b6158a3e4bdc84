"""Chat completions: converts requests in OpenAI's format to jobs, and results to responses.

`model` names how to search: a strategy, a profile, or both as in "tree:qwen3"; "marco-search" is
the default of both. The language model is the workers' setting, and the response names it. `marco`
in the body sets fields of the job: {"kind": "open_ended", "options": {"rollouts": 8}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from marco_search import profiles
from marco_search.errors import InvalidJob, ModelNotFound
from marco_search.jobs import JobResult
from marco_search.jobs.validation import shortened, shown
from marco_search.search.config import STRATEGIES

DEFAULT_MODEL = "marco-search"
ENDPOINT = "/v1/chat/completions"
_OPTIONS = {
    "max_completion_tokens": "max_tokens", "max_tokens": "max_new_tokens",
    "temperature": "temperature", "seed": "seed", "n": "answers",
}  # fmt: skip
_BODY = {"model", "messages", "metadata", "top_p", "stream", "stream_options", "marco", *_OPTIONS}
_IGNORED = {
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
    "store", "parallel_tool_calls",
}  # fmt: skip
# With these values they have no effect.
_IDLE: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,), "top_logprobs": (0,), "frequency_penalty": (0,), "presence_penalty": (0,),
    "logit_bias": ({},), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "stop": ([],), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"),
}  # fmt: skip
_LINE = {"custom_id", "method", "url", "body"}


def job_fields(line: Mapping[str, Any], subjects: Mapping[str, str]) -> dict[str, Any]:
    """The fields of the job that a line of a batch asks for.

    `subjects` has the field of the caller's text, by kind. Raises InvalidJob naming the field.
    """
    _refuse_others(line, _LINE)
    for name, wanted in (("method", "POST"), ("url", ENDPOINT)):
        if line.get(name, wanted) != wanted:
            raise InvalidJob(name, f"must be {wanted}, not {shown(line[name])}")
    body = line["body"]
    if not isinstance(body, dict):
        raise InvalidJob("body", f"must be an object, not {shown(body)}")
    if body.get("stream"):
        raise InvalidJob("body.stream", "a batch is not streamed; leave it out")
    try:
        fields = body_fields(body, subjects, any_model=True)
    except InvalidJob as error:
        raise InvalidJob(f"body.{error.field}", error.reason) from None
    return fields | {n: line[n] for n in ("custom_id",) if n in line}


def body_fields(
    body: Mapping[str, Any], subjects: Mapping[str, str], *, any_model: bool = False
) -> dict[str, Any]:
    """The fields of the job that a chat completion asks for. `any_model`: also with a `model`
    that is not known here, as in files made for other servers.

    Raises InvalidJob naming the field of the body, ModelNotFound for an unknown `model`.
    """
    idle = {n for n, v in body.items() if n in _IGNORED or v in _IDLE.get(n, ())}
    _refuse_others(body, _BODY | idle)
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidJob("stream", f"must be true or false, not {shown(body['stream'])}")
    own = body.get("marco", {})
    if not isinstance(own, dict):
        raise InvalidJob("marco", f"must be an object, not {shown(own)}")
    given = own.get("options", {})
    if not isinstance(given, dict):
        raise InvalidJob("marco.options", f"must be an object, not {shown(given)}")
    fields = {"kind": "reasoning", "endpoint": ENDPOINT, **own}
    fields |= {n: body[n] for n in ("metadata",) if body.get(n) is not None}
    options: dict[str, Any] = {"answers": 1} | named_options(body.get("model"), any_model)
    options |= {ours: body[n] for n, ours in _OPTIONS.items() if body.get(n) is not None}
    overrides = {} if body.get("top_p") is None else {"top_p": body["top_p"]}
    system, examples, text = _turns(body.get("messages"))
    fields[subjects.get(str(fields["kind"]), "question")] = text
    if system:
        fields["system_prompt"] = system
    if examples:
        overrides["examples"] = examples
    options |= given
    if overrides and isinstance(options.get("overrides", {}), dict):
        options["overrides"] = overrides | options.get("overrides", {})
    return fields | {"options": options}


def asked_field(field: str, body: Mapping[str, Any], subjects: Mapping[str, str]) -> str:
    """The field of a chat completion's body that set the job's `field`; if none, `field`."""
    if _gave(body.get("marco") or {}, field):
        return f"marco.{field}"
    head, _, option = field.partition(".")
    if option == "overrides.top_p":
        return "top_p"
    if head in (*subjects.values(), "system_prompt") or option.startswith("overrides"):
        return "messages"
    theirs = (n for n, ours in _OPTIONS.items() if ours == option and body.get(n) is not None)
    return next(theirs, field)


def _gave(own: Mapping[str, Any], field: str) -> bool:
    """Whether this field is among the fields of a job that a caller set."""
    head, _, rest = field.partition(".")
    if rest and head in ("options", "overrides") and isinstance(own.get(head), Mapping):
        return _gave(own[head], rest)
    return head in own


def models() -> list[str]:
    """The values of `model`, besides a strategy and a profile together."""
    return [DEFAULT_MODEL, *STRATEGIES, *profiles.files()]


def named_options(model: object, any_model: bool = False) -> dict[str, str]:
    """The strategy and the profile that `model` names. Raises ModelNotFound, unless any will do."""
    words = model.split(":") if isinstance(model, str) and model != DEFAULT_MODEL else []
    found = {"strategy" if word in STRATEGIES else "profile": word for word in words}
    known = found.get("profile") in (None, *profiles.files()) and len(found) == len(words)
    if known and (words or model in (None, DEFAULT_MODEL)):
        return found
    if any_model:
        return {}
    names = ", ".join(models())
    reason = f"there is no {shown(model)}; use one of {names}, or two of them as tree:marco-o1"
    raise ModelNotFound("model", reason)


def _refuse_others(data: Mapping[str, Any], known: set[str]) -> None:
    for name in data:
        if name not in known and data[name] is not None:
            reason = f"not supported; known: {', '.join(sorted(known))}"
            raise InvalidJob(shortened(name), reason)


def _turns(messages: object) -> tuple[str | None, list[dict[str, str]], str]:
    """System prompt, solved examples, and the last user's turn."""
    place = "messages"
    if not isinstance(messages, list) or not messages:
        raise InvalidJob(place, "must be a list of messages, the last one the user's")
    turns = [_turn(f"{place}[{i}]", message) for i, message in enumerate(messages)]
    system = None
    if turns[0][0] in ("system", "developer"):
        system = turns.pop(0)[1]
    roles = [role for role, _ in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise InvalidJob(place, "user and assistant must take turns, and the user be the last")
    texts = [text for _, text in turns]
    pairs = zip(texts[0:-1:2], texts[1::2], strict=True)
    return system, [{"user": user, "assistant": answer} for user, answer in pairs], texts[-1]


def _turn(place: str, message: object) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidJob(place, "must be an object with role and content")
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        content = None if None in parts else "".join(filter(None, parts))
    if not isinstance(content, str):
        raise InvalidJob(f"{place}.content", "must be text, or parts of text only")
    return message["role"], content


def _part(part: object) -> str | None:
    """The text of a part of a message; None for other parts."""
    if not isinstance(part, dict) or part.get("type", "text") != "text":
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


def response(result: JobResult) -> dict[str, Any]:
    """The result as a line of OpenAI's output file; an error where it did not succeed."""
    line: dict[str, Any] = {"id": result.job_id, "custom_id": result.custom_id}
    if result.state != "succeeded":
        code = f"batch_{result.state}" if result.state in ("cancelled", "expired") else result.state
        reason = f"{result.error_type}: {result.error}" if result.error else f"job {result.state}"
        if result.answers:
            reason += f"; GET /jobs/{result.job_id}/result has the answers that it had by then"
        return line | {"response": None, "error": {"code": code, "message": reason}}
    if result.archived:
        return line | {"response": None, "error": {"code": "archived", "message": gone(result)}}
    body = {"status_code": 200, "request_id": result.job_id, "body": completion(result)}
    return line | {"response": body, "error": None}


def gone(result: JobResult) -> str:
    """Why the result of an archived job has no answers."""
    return f"job {result.job_id}: its answers are in the archive of {result.archived}"


def completion(result: JobResult) -> dict[str, Any]:
    """The result as a chat completion: a choice for each answer, the best first.

    `marco` has how sure each is, and where the tree is. Tokens of the prompt are those of all
    prefixes.
    """
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": a.output, "reasoning_content": a.thought},
            "finish_reason": "stop",
            "marco": {"answer": a.text, **a.model_dump(include={"confidence", "votes", "share"})},
        }
        for i, a in enumerate(result.answers)
    ]
    if not choices:  # clients read the first without looking
        message = {"role": "assistant", "content": ""}
        choices = [{"index": 0, "message": message, "finish_reason": "length"}]
    prompt, generated = result.prompt_tokens, result.generated_tokens
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
    }
    names = {"job_id", "strategy", "stop_reason", "rollouts", "nodes", "seconds", "revision"}
    own = result.model_dump(include=names) | {
        "tree": f"/jobs/{result.job_id}/tree",
        "shortfall": result.shortfall,
    }
    return {
        "id": result.job_id, "object": "chat.completion", "created": created(result.job_id),
        "model": result.model, "choices": choices, "usage": usage, "marco": own,
    }  # fmt: skip


def created(job_id: str | None) -> int:
    """When a job was submitted, in seconds of Unix time: its id, a UUID version 7, says so."""
    return (UUID(job_id).int >> 80) // 1000 if job_id else 0
