"""Our comparison of answers agrees with math-verify, but for the pairs listed beside this file."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from marco_search.kinds import KINDS

KIND = KINDS["reasoning"]
LISTED = json.loads(
    Path(__file__).with_name("math_verify_disagreements.json").read_text(encoding="utf-8")
)
ANSWERS = r"""42 | -5 | - 5 | 1,234 | 1234 | 0.5 | \frac{1}{2} | 1/2 | \frac{\sqrt{2}}{2}
\frac{1}{\sqrt{2}} | \sqrt{2} | 2\sqrt{3} | \sqrt{12} | x > 5 | x < 5 | x \ge 5 | 5
(3, \frac{\pi}{2}) | (3, \pi/2) | (2, -1) | (-1, 2) | [2, 5) | (2, 5) | 2, 3, 5 | 5, 3, 2
x=5 | x=-3 | x=5 \text{ or } x=-3 | x=-3 \text{ or } x=5 | 25\% | 25 | 0.25 | 2\pi | \pi
2x+3 | 3+2x | \pm 3 | 3 | \{1,2,3\} | \{3,2,1\} | 10^5 | 100000 | 2^{10} | 1024
12\text{ cm}^2 | 12 | 5^\circ | 1\frac{1}{2} | 1.5 | \frac{3}{2} | 0.333 | \frac{1}{3}
\log 2 | \frac{2}{4} | 1:2 | 50\% | 3+4i"""


def answers() -> list[str]:
    return [answer.strip() for line in ANSWERS.split("\n") for answer in line.split(" | ")]


@pytest.mark.filterwarnings("ignore")
def test_pairs_that_both_compare() -> None:
    from math_verify import parse, verify

    # Without a limit: it would be set by a signal, and depend on how busy the machine is.
    parsed = {a: parse(f"${a}$", parsing_timeout=None) for a in answers()}
    found = {}
    for a, b in combinations_with_replacement([a for a in answers() if parsed[a]], 2):
        ours = KIND.equal(rf"\boxed{{{a}}}", rf"\boxed{{{b}}}")
        theirs = bool(verify(parsed[a], parsed[b], timeout_seconds=None))
        if ours != theirs:
            found[a, b] = ours
    listed = {(row["a"], row["b"]): row["ours"] for row in LISTED}
    assert found == listed
    assert all(row["reason"] for row in LISTED)
    # None of them is a false equality of ours.
    assert not any(found.values())
