"""The ChatML prompt format, which the Qwen models are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from marco_search.runtime.base import Message, plain


def render_chatml(messages: Sequence[Message]) -> str:
    """The prompt in ChatML, as Qwen2 and Marco-o1 take it, ready for the assistant's turn."""
    turns = [f"<|im_start|>{m.role}\n{plain(m.content)}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"
