"""Chat completions: a request in OpenAI's shape as the fields of a job, and the other way round.

`model` is not looked at: the workers' model answers, and the response names it. A member `marco`
of the body sets fields of the job: {"kind": "open_ended", "options": {"rollouts": 8}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marco_search.errors import InvalidJob
from marco_search.jobs import JobResult
from marco_search.jobs.validation import shown

ENDPOINT = "/v1/chat/completions"
_OPTIONS = {
    "max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens",
    "temperature": "temperature", "seed": "seed", "n": "answers",
}  # fmt: skip
_BODY = {"model", "messages", "metadata", "top_p", "stream", "user", "marco", *_OPTIONS}
_LINE = {"custom_id", "method", "url", "body"}


def is_request(data: Mapping[str, Any]) -> bool:
    """Whether a line is a request in OpenAI's shape and no job of ours."""
    return "kind" not in data and "body" in data


def job_fields(line: Mapping[str, Any], subjects: Mapping[str, str]) -> dict[str, Any]:
    """The fields of the job that a line of a batch asks for.

    `subjects` has the field of the caller's text, by kind. Raises InvalidJob naming the field.
    """
    _refuse_others("", line, _LINE)
    for name, wanted in (("method", "POST"), ("url", ENDPOINT)):
        if line.get(name, wanted) != wanted:
            raise InvalidJob(name, f"must be {wanted}, not {shown(line[name])}")
    body = line["body"]
    if not isinstance(body, dict):
        raise InvalidJob("body", f"must be an object, not {shown(body)}")
    _refuse_others("body.", body, _BODY)
    if body.get("stream"):
        raise InvalidJob("body.stream", "a batch is not streamed; leave it out")
    own = body.get("marco", {})
    if not isinstance(own, dict):
        raise InvalidJob("body.marco", f"must be an object, not {shown(own)}")
    fields = {"kind": "reasoning", "endpoint": ENDPOINT, **own}
    fields |= {n: line[n] for n in ("custom_id",) if n in line}
    fields |= {n: body[n] for n in ("metadata",) if body.get(n) is not None}
    options = {ours: body[n] for n, ours in _OPTIONS.items() if body.get(n) is not None}
    overrides = {} if body.get("top_p") is None else {"top_p": body["top_p"]}
    system, examples, text = _turns(body.get("messages"))
    fields[subjects.get(str(fields["kind"]), "question")] = text
    if system is not None:
        fields["system_prompt"] = system
    if examples:
        overrides["examples"] = examples
    given = own.get("options", {})
    if not isinstance(given, dict):
        raise InvalidJob("body.marco.options", f"must be an object, not {shown(given)}")
    if overrides:
        options["overrides"] = overrides
    return fields | ({"options": options | given} if options or given else {})


def _refuse_others(where: str, data: Mapping[str, Any], known: set[str]) -> None:
    for name in data:
        if name not in known and data[name] is not None:
            raise InvalidJob(f"{where}{name}", f"not supported; known: {', '.join(sorted(known))}")


def _turns(messages: object) -> tuple[str | None, list[dict[str, str]], str]:
    """System prompt, solved examples, and the last user's turn."""
    place = "body.messages"
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
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = None if None in parts else "".join(map(str, parts))
    if not isinstance(content, str):
        raise InvalidJob(f"{place}.content", "must be text, or parts of text only")
    return message["role"], content


def response(result: JobResult) -> dict[str, Any]:
    """The result as a line of OpenAI's output file; an error where it did not succeed."""
    line: dict[str, Any] = {"id": result.job_id, "custom_id": result.custom_id}
    if result.state != "succeeded":
        code = f"batch_{result.state}" if result.state in ("cancelled", "expired") else result.state
        reason = f"{result.error_type}: {result.error}" if result.error else f"job {result.state}"
        return line | {"response": None, "error": {"code": code, "message": reason}}
    body = {"status_code": 200, "request_id": result.job_id, "body": completion(result)}
    return line | {"response": body, "error": None}


def completion(result: JobResult) -> dict[str, Any]:
    """The result as a chat completion: a choice for each answer, the best first.

    `marco` has how sure each is. Tokens of the prompt are those of all prefixes.
    """
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": a.output, "reasoning_content": a.thought},
            "finish_reason": "stop",
            "marco": {"answer": a.text, "confidence": a.confidence, "share": a.share},
        }
        for i, a in enumerate(result.answers)
    ]
    prompt, generated = result.prompt_tokens, result.generated_tokens
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
    }
    return {
        "id": result.job_id, "object": "chat.completion", "model": result.model,
        "choices": choices, "usage": usage,
    }  # fmt: skip
