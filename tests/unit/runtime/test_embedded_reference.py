"""The decoder computes what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded.backend import LoadedModel, load_model
from marco_search.runtime.embedded.decoder import Part
from marco_search.runtime.embedded.sampling import log_softmax_parts
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_references import FILE, FOLDERS, POSITIONS, TOKENS, ids, write
from tests.unit.runtime.embedded_rig import answer, engine_of, request

LIMIT = 1e-4  # on a log-prob
REFERENCE = json.loads((MODEL_DIR / "reference.json").read_text(encoding="utf-8"))

ARCHITECTURES = json.loads(FILE.read_text())


def test_the_pocket_model_gives_the_stored_log_probs() -> None:
    with engine_of(MODEL_DIR) as (model, engine):
        asked = []
        for record in REFERENCE:
            assert model.tokenizer.encode(record["prompt"]).tolist() == record["ids"]
            asked.append(
                engine.submit(request(record["ids"], len(record["generated"]), temperature=0.0))
            )
        for record, ticket in zip(REFERENCE, asked, strict=True):
            found = answer(ticket)
            assert found.tokens == record["generated"], record["name"]
            assert found.logprobs == pytest.approx(record["logprobs"], abs=LIMIT), record["name"]
            for ids, logprobs, expected in zip(
                found.top_ids, found.top_logprobs, record["top"], strict=True
            ):
                wanted = dict(expected)
                for i, logprob in zip(ids, logprobs, strict=True):
                    assert logprob == pytest.approx(wanted.get(i, logprob), abs=LIMIT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_and_gguf_type_gives_the_stored_log_probs(
    tmp_path: Path, name: str
) -> None:
    found = _log_probs(load_model(write(name, tmp_path)), ids(), POSITIONS)
    assert np.allclose(found[:, list(TOKENS)], ARCHITECTURES[name], atol=LIMIT, rtol=LIMIT / 5)


def _log_probs(model: LoadedModel, tokens: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """After the tokens at these positions: [positions, vocab]."""
    model.decoder.slots.resize((len(positions), 4))
    parts = [Part(slot, 0, tokens[: last + 1]) for slot, last in enumerate(positions)]
    shifted, _, log_sum = log_softmax_parts(model.decoder.prefill(parts))
    return shifted - log_sum[:, None]


@pytest.mark.parametrize("kind", ["pocket", "grouped", *FOLDERS])
def test_every_row_agrees_with_transformers(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = MODEL_DIR
    if kind == "grouped":
        folder = write_model(tmp_path / kind, tied=False, heads=6)
    elif kind != "pocket":
        folder = write(kind, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.eval()
    model = load_model(folder)
    rng = np.random.default_rng(3)
    with torch.inference_mode():
        for length in (200, 65, 64, 1):
            tokens = rng.integers(0, model.config.vocab, length)
            theirs = reference(torch.tensor(tokens[None])).logits[0].double().log_softmax(-1)
            assert np.abs(_log_probs(model, tokens, range(length)) - theirs.numpy()).max() < LIMIT
