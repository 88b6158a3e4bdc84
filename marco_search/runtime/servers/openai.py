"""Servers with OpenAI's /v1/completions: vLLM, llama.cpp, llama-cpp-python, TGI and the like.

They agree on little more than the path. What a server is shows in its list of models; how it
answers, in one short completion that it is asked for at the start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from marco_search.deadlines import Call
from marco_search.errors import BranchFailed, ModelRefused, PromptTooLong
from marco_search.runtime.base import UNKNOWN, RuntimeInfo
from marco_search.runtime.servers.calls import Failure
from marco_search.runtime.servers.openai_answers import TEXT_IDS, Answer, grammar, read
from marco_search.runtime.servers.server import Server, context_tokens
from marco_search.search.branches import TOP_K, Part
from marco_search.settings import Settings

_PROBE, _PROBE_TOKENS = "The", 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is particular to one server program."""

    name: str
    advice: str  #: how to start it so that it sends log-probabilities of TOP_K candidates
    tokenizes: bool = False  #: whether /tokenize gives ids and a prompt may consist of them
    #: Turns off what would change the distribution unasked.
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


_NO_ABORT = "aborting: a branch that is cut short runs on to its end on the server"
VLLM = Program(
    name="vllm",
    advice="start it with --max-logprobs 5 or more",
    tokenizes=True,
    # Else the model's generation_config.json decides.
    sampling={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
)
LLAMA_CPP = Program(
    name="llama.cpp",
    advice="use a version of 2025 or later",
    tokenizes=True,
    sampling={"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "cache_prompt": True},
)
LLAMA_CPP_PYTHON = Program(
    name="llama-cpp-python",
    advice="start it with --logits_all true",
    sampling={"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
    lacks=(_NO_ABORT, "branches side by side: it answers one request at a time"),
)
TGI = Program(
    name="tgi",
    advice="start it with --max-top-n-tokens 5 or more",
    lacks=(
        "counts of prompt tokens",
        "the model's own log-probabilities: its are those at the temperature",
    ),
)
OTHER = Program(
    name="server",
    advice=f"it must support `logprobs: {TOP_K}` with the log-probabilities of {TOP_K} candidates",
    lacks=(_NO_ABORT,),
)
_BY_OWNER = {"vllm": VLLM, "llamacpp": LLAMA_CPP, "me": LLAMA_CPP_PYTHON}


class OpenAIServer(Server):
    """One server; `url` ends in the version of the interface, usually /v1."""

    liveness = "/health"  # where there is none, that is said at once
    prefills = False  # no server here does it without generating
    ask_s = 60.0  # llama-cpp-python says what it serves when it has finished a branch

    def __init__(self, url: str, settings: Settings) -> None:
        path = urlsplit(url).path.rstrip("/") or "/v1"
        root, _, version = path.rpartition("/")
        base = url.removesuffix(urlsplit(url).path)
        self._api = f"/{version}"
        super().__init__(base + root, settings)
        self._wanted = settings.runtime_model
        self._program = OTHER
        self._context = 0  # tokens; as far as is known
        self._card: Mapping[str, Any] = {}  # what it says of its model
        self._sha: object = None  # of the model, where the program tells it
        self._spelt: dict[int, str] = {}
        self._spells = False  # whether it says what an id reads

    # -- what it serves ----------------------------------------------------------------

    def _describe(self) -> RuntimeInfo:
        """Model and engine; Failure with ModelRefused if it sends no log-probabilities."""
        self._check(self._asking())
        version, context = self._find_program()
        self._context = context_tokens(context)
        model, revision = self._expect(self._card.get("id"), self._revision())
        self._tokenizes = self._spells = False
        if self._program.tokenizes:
            self._find_tokenizer()
        if self._program is VLLM:
            with contextlib.suppress(Failure, BranchFailed):
                self._spell(self._asking(), [0])
                self._spells = True
        answer = self._probed()
        notes = [] if self._tokenizes else ["prefixes as text"]
        notes += [] if answer.has_ids else ["token ids from texts"]
        name = f"{self._program.name} {self._connections.quoted(str(version or UNKNOWN))}"
        return RuntimeInfo(
            name="openai",
            version=", ".join([name, *notes]),
            model=model,
            revision=revision,
            context_tokens=self._context,
            lacks=self._lacks(answer),
            tokenizer=str(self._card.get("root") or ""),
        )

    def _find_program(self) -> tuple[object, object]:
        """(version, context in tokens) of the program that this is."""
        card, meta = self._card, _object(self._card.get("meta"))
        self._program, self._sha = _BY_OWNER.get(str(card.get("owned_by")), OTHER), None
        self.template = None
        if self._program is VLLM:
            return self._page("/version").get("version"), card.get("max_model_len")
        if self._program is LLAMA_CPP:
            page = self._page("/props")
            context = _object(page.get("default_generation_settings")).get("n_ctx")
            if isinstance(template := page.get("chat_template"), str):
                specials = {name: page.get(name) for name in ("bos_token", "eos_token")}
                known = {name: text for name, text in specials.items() if isinstance(text, str)}
                self.template = template, known
            return page.get("build_info"), context or meta.get("n_ctx_train")
        if self._program is LLAMA_CPP_PYTHON:
            return _object(self._page("/openapi.json").get("info")).get("version"), None
        page = self._page("/info")
        if "max_total_tokens" in page:
            self._program, self._sha = TGI, page.get("model_sha")
        return page.get("version"), page.get("max_total_tokens") or card.get("max_model_len")

    def _revision(self) -> object:
        """What tells this model from another of the same name."""
        meta = _object(self._card.get("meta"))
        if "n_params" in meta:
            return f"{meta['n_params']} parameters in {meta.get('size')} bytes"
        return self._sha or self._card.get("root")

    def _page(self, path: str) -> dict[str, Any]:
        """What a page says; nothing where there is no such page."""
        with contextlib.suppress(Failure):
            return self._connections.request(path, self._asking())
        return {}

    def _probed(self) -> Answer:
        """A short completion: how this server answers."""
        try:
            answer = self._ask(_PROBE, _PROBE_TOKENS, self._asking())
        except Failure as failure:
            if failure.kind is not BranchFailed and "logprobs" not in failure.message:
                raise
            raise self._useless(failure.message) from None
        most = max((sum(p > -1e9 for p, _, _ in top) for top in answer.tops), default=0)
        if most < TOP_K:
            raise self._useless(f"it sends {most} candidates for a token, {TOP_K} are needed")
        return answer

    def _try_generation(self, call: Call) -> None:
        self._silent = False  # a server that keeps no connection is checked once more, for this
        try:
            self._ask(_PROBE, 1, call)
        except Failure:
            self._silent = True
            raise

    def _useless(self, why: str) -> Failure:
        message = f"{self.url} can't be searched with: {why}; {self._program.advice}"
        return Failure(kind=ModelRefused, message=message)

    def _lacks(self, answer: Answer) -> tuple[str, ...]:
        found = ["the same bits again", *self._program.lacks]
        if answer.cached_tokens is None:
            found.append("counts of cached tokens")
        if not self._tokenizes:
            found.append("going on from token ids: prefixes are sent as text")
        if not answer.has_ids:
            found.append("token ids: they are made from the tokens' texts")
        return tuple(found)

    def _identity(self, call: Call) -> tuple[str, str]:
        answer = self._connections.request(f"{self._api}/models", call, accept=self._accept)
        return self._accept(answer)

    def _accept(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        cards = answer.get("data")
        known = {
            c["id"]: c
            for c in (cards if isinstance(cards, list) else ())
            if isinstance(c, dict) and isinstance(c.get("id"), str)
        }
        wanted = self.expected.model if self.expected else self._wanted
        if wanted not in known:
            names = ", ".join(known) or "no model"
            if len(known) != 1 and self.expected is None:
                why = f"{self.url} serves {names}: name one in MARCO_RUNTIME_MODEL"
                raise Failure(kind=ModelRefused, message=self._connections.quoted(why))
            wanted = next(iter(known), None)
        self._card = known.get(wanted, {})
        if self.expected and not self._described:
            return self._expect(wanted, self.expected.revision)  # `_describe` finds its own
        return self._expect(wanted, self._revision())

    # -- completions -------------------------------------------------------------------

    def _complete(
        self, body: Mapping[str, Any], parts: Sequence[Part], call: Call
    ) -> dict[str, Any]:
        asked, began = body["sampling_params"], time.monotonic()
        # A job may go on here that was begun where ids are made from texts.
        usable = self._tokenizes and not any(map(_made_up, parts))
        prompt = self._token_ids(parts, call) if usable else body["text"]
        stops, most = asked["stop"] or [], asked["max_new_tokens"]
        if isinstance(prompt, list):
            # vLLM does not say how long a prompt is that leaves no room for all.
            most = min(most, self._context - len(prompt))
            if most <= 0:
                why = f"the prompt has {len(prompt)} tokens; the model takes {self._context} in all"
                raise Failure(kind=PromptTooLong, message=why)
        answer = self._ask(
            prompt,
            most,
            call,
            stop=stops,
            seed=asked["sampling_seed"],
            temperature=asked["temperature"],
            top_p=asked["top_p"],
        )
        if answer.cut and stops:
            answer = self._closed(answer, prompt, body["text"], stops, call)
        found = answer.as_sglang(stops)
        found["meta_info"]["e2e_latency"] = time.monotonic() - began
        return found

    def _ask(self, prompt: str | list[int], tokens: int, call: Call, **more: Any) -> Answer:
        """One completion; greedy unless `more` says otherwise."""
        if self._program is TGI:
            path, body = "/generate", _for_tgi(prompt, tokens, **more)
        else:
            given = {"temperature": 0.0, "top_p": 1.0, "seed": 0, **self._program.sampling, **more}
            given |= {"model": self._card.get("id"), "prompt": prompt, "max_tokens": tokens}
            # Else vLLM sends texts, from which ids can only be made.
            given |= {"return_tokens_as_token_ids": True} if self._spells else {}
            path, body = f"{self._api}/completions", given | {"logprobs": TOP_K}
        found = self._post(path, body, tokens, call)
        try:
            return read(found, partial(self._spell, call), trims=self._program is LLAMA_CPP)
        except BranchFailed as error:
            raise Failure(kind=BranchFailed, message=str(error)) from None

    def _closed(
        self,
        answer: Answer,
        prompt: str | list[int],
        text: str,
        stops: Sequence[str],
        call: Call,
    ) -> Answer:
        """The answer with the tokens of its stop text, which the server had left out.

        `text` is that of `prompt`. Asked for under a grammar that allows nothing else: their
        log-probabilities are the model's all the same.
        """
        kept = answer.whole_tokens()
        done = "".join(row[2] for row in kept.tokens)
        rest = answer.text[len(done) :]
        if isinstance(prompt, list) and kept.has_ids:
            prompt = [*prompt, *(row[1] for row in kept.tokens)]
        else:
            prompt = text + done
        wanted = [rest + stop for stop in stops]
        longest = max(len(text.encode()) for text in wanted)
        last = self._ask(prompt, longest, call, grammar=grammar(wanted))
        stop = next((s for s in stops if last.text.startswith(rest + s)), None)
        if stop is None:
            raise Failure(kind=BranchFailed, message="the server sent no tokens of its stop text")
        return kept.closed(last, stop)

    # -- token ids ---------------------------------------------------------------------

    def _tokenize(self, text: str, first: bool, call: Call) -> object:
        if self._program is VLLM:
            body = {"model": self._card.get("id"), "prompt": text, "add_special_tokens": first}
        else:
            body = {"content": text, "add_special": first, "parse_special": True}
        return self._connections.request("/tokenize", call, body).get("tokens")

    def _spell(self, call: Call, ids: Sequence[int]) -> list[str]:
        """The text of each token, which vLLM does not send with the ids."""
        for token in ids:
            if token not in self._spelt:
                body = {"model": self._card.get("id"), "tokens": [token]}
                text = self._connections.request("/detokenize", call, body).get("prompt")
                if not isinstance(text, str):
                    raise BranchFailed("the server does not return the text of a token")
                self._spelt[token] = text
        return [self._spelt[token] for token in ids]


def _made_up(part: Part) -> bool:
    return not isinstance(part, str) and any(i >= TEXT_IDS for i in part)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _for_tgi(
    prompt: str | list[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of TGI's /generate; its /v1/completions sends no log-probabilities."""
    parameters = {"max_new_tokens": tokens, "seed": seed, "stop": list(stop)}
    parameters |= {"details": True, "top_n_tokens": TOP_K, "do_sample": temperature > 0}
    parameters |= {"temperature": temperature} if temperature > 0 else {}
    parameters |= {"top_p": top_p} if top_p < 1 else {}  # 1 is refused
    return {"inputs": prompt, "parameters": parameters}
