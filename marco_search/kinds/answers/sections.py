"""Takes an assistant's turn apart: `<Thought> ... </Thought> <Output> ... </Output>`.

A turn may begin inside the thought (its opening tag is put in by us, see
`Kind.assistant_prefix`), and models leave tags out. The rules:

- The output is the last closed <Output> block: after a reflection, the later one counts.
- A turn that the model ended itself (`finished`) may lack tags. An <Output> left open runs to
  the end of the turn; without one, the text after </Thought> is the output; without that
  either, the whole turn is.
- A turn that was cut off (not `finished`) has an output only if its block is closed: half a
  number is no answer.
"""

from __future__ import annotations

THOUGHT, END_THOUGHT = "<Thought>", "</Thought>"
OUTPUT, END_OUTPUT = "<Output>", "</Output>"
TURN_END = ("<|im_end|>", "<|endoftext|>")
"""Special tokens that a runtime may leave at the end of the text."""


def output_of(text: str, *, finished: bool = True) -> str | None:
    """The Output part alone, stripped; None if there is none (see above) or it is empty."""
    end = text.rfind(END_OUTPUT)
    start = text.rfind(OUTPUT, 0, end) if end >= 0 else -1
    if start >= 0:
        part = text[start + len(OUTPUT) : end]
    elif finished:
        part = _open_output(_trimmed(text))
    else:
        return None
    return part.strip() or None


def thought_of(text: str) -> str:
    """The Thought part alone, stripped: up to </Thought>, else to <Output>, else to the end."""
    body = _trimmed(text).lstrip().removeprefix(THOUGHT)
    # A thought that went on after it was closed runs to its last end.
    end = body.rfind(END_THOUGHT)
    if end < 0:
        end = body.find(OUTPUT)
    return (body if end < 0 else body[:end]).strip()


def _open_output(text: str) -> str:
    after_thought = text.rfind(END_THOUGHT)
    start = text.rfind(OUTPUT)
    if start > after_thought:
        part = text[start + len(OUTPUT) :]
    elif after_thought >= 0:
        part = text[after_thought + len(END_THOUGHT) :]
    else:
        part = text.lstrip().removeprefix(THOUGHT)
    return part.removesuffix(END_OUTPUT)


def _trimmed(text: str) -> str:
    text = text.rstrip()
    for token in TURN_END:
        text = text.removesuffix(token).rstrip()
    return text
