"""What the queue's benchmark counts is what it says it counts."""

from __future__ import annotations

from ops.bench.queueing import copying, idle
from ops.bench.queueing.ours import small


def test_statements_of_several_lines_count_once_and_transactions_not_at_all() -> None:
    log = (
        "2026 UTC [1] LOG:  statement: BEGIN\n"
        "2026 UTC [1] LOG:  execute <unnamed>: \n\tSELECT 1,\n\t 2\n"
        "2026 UTC [1] DETAIL:  Parameters: $1 = '5'\n"
        "2026 UTC [1] LOG:  statement: COMMIT\n"
        "2026 UTC [1] LOG:  statement: SELECT 3\n"
        "2026 UTC [1] LOG:  checkpoint starting: time\n"
    )
    assert idle.statements(log) == 2


def test_a_search_in_one_round_has_all_that_its_rounds_have() -> None:
    kept = copying.rounds(0, rollouts=16)
    merged = copying.merged(kept)
    assert len(kept) > 1
    assert [n.node_id for n in merged.nodes] == list(range(1, len(merged.nodes) + 1))
    assert len(merged.rollouts) == 16


def test_the_small_job_is_one_rollout() -> None:
    assert small(3).options.strategy == "cot"
