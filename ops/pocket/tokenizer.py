"""Builds the tokenizer: byte-level BPE in which digits, operators and Han characters stand alone.

A digit per token lets a small model do column arithmetic. `<Thought>` and its like are added
tokens but not special ones, so that decoding keeps them. Needs `tokenizers` only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ops.pocket.samples import draw_sample, phrases

VOCABULARY = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<Thought>", "</Thought>", "<Output>", "</Output>")
PADDING, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
_ALONE = r"[0-9]|\n|[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]|[+\-*/=]"
_WORDS = r" ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"


def user_prompt(user: str) -> str:
    """The text before the assistant's turn, as the chat template writes it."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def build_tokenizer(samples: int = 20_000, seed: int = 0) -> Tokenizer:
    """Trains the merges on generated samples; the same seed gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ALONE), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(TAGS),
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(samples, seed), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def _corpus(samples: int, seed: int) -> Iterator[str]:
    for _ in range(5):
        for phrase in phrases():
            yield phrase.chinese
            yield from phrase.translations
    rng = random.Random(seed)
    for _ in range(samples):
        sample = draw_sample(rng)
        yield f"{sample.user}\nuser\nassistant\nsystem\n{sample.assistant}"
