"""System prompts with a name. A job may give a name or a text of its own."""

from __future__ import annotations

PRESETS = {
    "marco-o1": (
        "你是 Marco-o1，一个训练有素的 AI 助手，"
        "由阿里巴巴国际数字商业集团的 AI Business 团队研发。\n\n"
        "## 回答格式\n"
        "先思考，再作答。思考过程写在 <Thought> 标签内，最终结果写在 <Output> 标签内。\n"
        "<Thought> 内尽量使用英文；引用原文时保留原文的语言，数学内容用 markdown 书写。\n"
        "<Output> 内使用用户提问所用的语言。\n"
    )
}
"""Preset name to text. "marco-o1": our wording of what the deployed Marco-o1 is told."""


def system_prompt(name_or_text: str | None) -> str | None:
    """The text to send: a preset's if a preset is named, else the given text; None for none."""
    if name_or_text is None:
        return None
    return PRESETS.get(name_or_text, name_or_text)
