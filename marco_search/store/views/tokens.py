"""Views of the tokens: every generated one, and what the model could have said instead."""

from __future__ import annotations

from marco_search.store.views.trees import NODE
from marco_search.store.views.view import JOB, View

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
        "logprob": "Natural log of its probability",
        "probability": "Its probability, 0 to 1",
        "chosen": "Whether it is the token that was generated",
    },
    """
SELECT n.job_id, n.node_id, ((a.i - 1) / 5 + 1)::integer, ((a.i - 1) % 5 + 1)::integer,
    a.token_id, a.logprob, exp(a.logprob::double precision),
    a.token_id = n.token_ids[(a.i - 1) / 5 + 1]
FROM public.nodes AS n
CROSS JOIN LATERAL unnest(n.top_ids, n.top_logprobs)
    WITH ORDINALITY AS a (token_id, logprob, i)
WHERE a.token_id <> -1
""",
)
