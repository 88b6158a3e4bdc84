"""From the frontend's sampling parameters to a request that the engine takes."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from marco_search.errors import BranchFailed, PromptTooLong
from marco_search.runtime.embedded.model import LoadedModel
from marco_search.runtime.embedded.requests import GenerationRequest
from marco_search.runtime.embedded.sampling import TOP
from marco_search.runtime.embedded.tokenizer import TokenIds, Tokenizer
from marco_search.runtime.params import params_of

# Sampling parameters that the frontend knows and this engine does not; what they are when unset.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "min_new_tokens": (0,),
    "top_k": (-1,),
    "min_p": (0.0,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "regex": (None, ""),
    "json_schema": (None, ""),
    "dtype": (None,),
}


def request_of(model: LoadedModel, s: Any, params: Any) -> GenerationRequest:
    """The request behind a `gen`: executor `s` and its sampling parameters.

    Raises PromptTooLong, or BranchFailed for what the engine can't do.
    """
    for name, unset in _UNSUPPORTED.items():
        if getattr(params, name, unset[0]) not in (None, *unset):
            raise BranchFailed(f"the embedded engine has no sampling parameter {name}")
    if (number(params.top_logprobs_num) or 0) > TOP:
        raise BranchFailed(f"top_logprobs_num is {params.top_logprobs_num}, at most {TOP}")
    if not 0 <= params.temperature < math.inf or not 0 < params.top_p <= 1:
        raise BranchFailed(
            f"temperature {params.temperature} and top_p {params.top_p}: the first has to be 0 or "
            "more, the second above 0 and at most 1"
        )
    ids = prefix_ids(model.tokenizer, s)
    room = model.config.context_tokens - len(ids)
    if len(ids) == 0:
        raise BranchFailed("the prompt is empty")
    if room < 1:
        most = model.config.context_tokens
        raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model takes {most} in all")
    stops = [params.stop] if isinstance(params.stop, str) else params.stop or ()
    own = params_of(s)
    start = number(params.logprob_start_len)
    scored = params.return_logprob is True and start is not None and 0 <= start < len(ids) - 1
    return GenerationRequest(
        ids=ids,
        max_new_tokens=min(params.max_new_tokens, room),
        temperature=params.temperature,
        top_p=params.top_p,
        seed=own.seed if own else random.getrandbits(31),
        stops=tuple(stops),
        stop_ids=tuple(params.stop_token_ids or ()),
        ignore_eos=bool(params.ignore_eos),
        score_from=start + 1 if scored and start is not None else None,
    )


def prefix_ids(tokenizer: Tokenizer, s: Any) -> TokenIds:
    """The executor's text in tokens: the ones that the trail holds, where its parts are known."""
    own = params_of(s)
    if own is None or not own.parts:
        return tokenizer.encode(s.text_)
    parts = [tokenizer.encode(p) if isinstance(p, str) else p for p in own.parts]
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def number(value: Any) -> int | None:
    """A parameter that may be unset."""
    # The frontend's own default for these is the tuple (None,).
    return value if isinstance(value, int) else None
