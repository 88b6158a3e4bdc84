"""Chat prompts: ChatML, or the model's own Jinja template, run as transformers runs it.

Same environment (immutable sandbox, trimmed blocks, loop controls, the `generation` tag), the
same globals (`raise_exception`, `strftime_now`) and the same `tojson`, so that a folder
renders here as it does there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from marco_search.errors import ModelRefused
from marco_search.runtime.base import Render, strip_control_tokens
from marco_search.runtime.embedded.files import ModelFiles
from marco_search.search.branches import Message

_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


def render_chatml(messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
    """The prompt in ChatML, as Qwen2 and Marco-o1 take it, ready for the assistant's turn."""
    turns = [
        f"<|im_start|>{m.role}\n{strip_control_tokens(m.content)}<|im_end|>\n" for m in messages
    ]
    return "".join(turns) + "<|im_start|>assistant\n"


def read_chat_template(files: ModelFiles) -> Render | None:
    """The model's own template; None: it has none.

    Raises ModelRefused for a template that is not valid, or does not take the messages.
    """
    config = files.tokenizer_config
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    if found is None:
        return None
    named = {name: token_text(config.get(name)) for name in _SPECIALS}
    return compile_template(found, {k: text for k, text in named.items() if text is not None})


def compile_template(text: str, specials: Mapping[str, str] | None = None) -> Render:
    """The Jinja template `text`; "chatml" is ChatML. `specials` are the special tokens by name.

    Raises ModelRefused for a template that is not valid, or does not take the messages.
    """
    if text == "chatml":
        return render_chatml
    try:
        template = _environment().from_string(text)
    except jinja2.TemplateError as error:
        raise ModelRefused(f"the chat template is not valid: {error}") from None

    def render(messages: Sequence[Message], options: Mapping[str, Any] | None = None) -> str:
        named = specials or {}
        turns = [
            {"role": m.role, "content": strip_control_tokens(m.content, named.values())}
            for m in messages
        ]
        given = {**named, **(options or {}), "messages": turns}
        try:
            return template.render(**{"add_generation_prompt": True, "tools": None, **given})
        except Exception as error:  # of any kind: options of a job may have any value
            raise ModelRefused(f"the chat template rejected the prompt: {error}") from None

    return render


def token_text(value: object) -> str | None:
    """A special token in tokenizer_config.json: its text, or an added token written out."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it is just the text."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # so declared by the base class

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
