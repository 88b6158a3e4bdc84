"""Views of the tokens: every generated one, and what the model could have said instead."""

from __future__ import annotations

from marco_search import schema
from marco_search.store.views.trees import NODE
from marco_search.store.views.view import JOB, View, selected, stored

PLACE = JOB | NODE | {"position": "Which token of the node, from 1"}

TOKENS = View(
    "tokens",
    "Every generated token with its probability and confidence",
    PLACE
    | {
        "token_id": "Its number in the model's vocabulary",
        "text": "The text that it completes; empty inside a character",
        "logprob": "Natural log of its probability",
        "probability": "Its probability, 0 to 1",
        "confidence": "c_i: its probability over the sum of the best five's",
    },
    """
SELECT n.job_id, n.node_id, t.position::integer, t.token_id, t.text, t.logprob,
    exp(t.logprob::double precision), t.confidence
FROM public.nodes AS n
CROSS JOIN LATERAL unnest(n.token_ids, n.token_texts, n.logprobs, n.confidences)
    WITH ORDINALITY AS t (token_id, text, logprob, confidence, position)
""",
)

ALTERNATIVES = View(
    "alternatives",
    "The best candidates for every generated token, five at most",
    PLACE
    | {
        "rank": "1 is the most probable",
        "token_id": "The candidate",
        "text": "What it reads by itself; U+FFFD stands for a part of a character",
        "logprob": "Natural log of its probability",
        "probability": "Its probability, 0 to 1",
        "chosen": "Whether it is the token that was generated",
    },
    """
SELECT n.job_id, n.node_id, ((a.i - 1) / 5 + 1)::integer, ((a.i - 1) % 5 + 1)::integer,
    a.token_id, v.text, a.logprob, exp(a.logprob::double precision),
    a.token_id = n.token_ids[(a.i - 1) / 5 + 1]
FROM public.nodes AS n
CROSS JOIN LATERAL unnest(n.top_ids, n.top_logprobs)
    WITH ORDINALITY AS a (token_id, logprob, i)
LEFT JOIN public.attempts AS w ON w.job_id = n.job_id AND w.generation = n.generation
LEFT JOIN public.vocabulary AS v
    ON v.model = w.model AND v.revision = w.revision AND v.token_id = a.token_id
WHERE a.token_id <> -1
""",
)

VOCABULARY = selected(
    "vocabulary",
    "What tokens read, as far as they were ever a candidate; no part of what `marco verify` proves",
    stored(schema.VOCABULARY),
    "public.vocabulary",
)
