"""The decoder computes what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from marco_search.pocket import MODEL_DIR
from marco_search.runtime.embedded.backend import load_model
from marco_search.runtime.embedded.decoder import Part
from marco_search.runtime.embedded.sampling import log_softmax_parts
from tests.tiny_model import write_model
from tests.unit.runtime.embedded_rig import answer, engine_of, request

LIMIT = 1e-4  # on a log-prob
REFERENCE = json.loads((MODEL_DIR / "reference.json").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("kind", ["pocket", "tied", "untied", "grouped"])
def test_every_row_agrees_with_transformers(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = MODEL_DIR
    if kind != "pocket":
        heads = {"grouped": 6}.get(kind, 4)
        folder = write_model(tmp_path / kind, tied=kind == "tied", heads=heads, biases=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.eval()
    model = load_model(folder)
    rng = np.random.default_rng(3)
    lengths = (200, 65, 64, 1)
    ids = [rng.integers(0, model.config.vocab, n) for n in lengths]
    model.decoder.slots.resize((max(lengths), 4))
    with torch.inference_mode():
        for tokens in ids:
            parts = [Part(i, 0, tokens[: i + 1]) for i in range(len(tokens))]
            logits = model.decoder.prefill(parts)
            theirs = reference(torch.tensor(tokens[None])).logits[0].double().log_softmax(-1)
            shifted, _, log_sum = log_softmax_parts(logits)
            assert np.abs(shifted - log_sum[:, None] - theirs.numpy()).max() < LIMIT
