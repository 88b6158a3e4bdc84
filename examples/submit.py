"""Submit jobs from Python, hear of each as it ends, and look into one of the trees.

    marco up                                  # or DATABASE_URL and REDIS_URL
    marco worker                              # in another terminal
    .venv/bin/python examples/submit.py

Jobs are stored before `submit` returns: this program may end and wait for them later.
"""

from __future__ import annotations

import sys

from marco_search.errors import InvalidJob, MarcoError
from producer import OpenEndedJob, Producer, ReasoningJob, SearchOptions, TranslationJob

WAIT_S = 120.0


def main() -> None:
    """Three jobs and one that is refused."""
    jobs = [
        ReasoningJob(
            question="Tom has 3 boxes with 12 eggs each. Tom loses 7 eggs. "
            "How many eggs does Tom have now?",
            expected="29",  # for the report only: no search sees it
            options=SearchOptions(strategy="step", rollouts=8, seed=1),
        ),
        TranslationJob(text="这支口红不踩雷", source="zh", target="en"),
        OpenEndedJob(prompt="Find two numbers whose sum is 64.", options=SearchOptions(answers=4)),
    ]
    with Producer() as producer:
        handles = producer.submit_many(jobs)
        for result in producer.results(handles, timeout_s=WAIT_S):
            print(f"{result.kind}: {result.state} in {result.seconds:.1f} s, {result.nodes} nodes")
            for answer in result.answers:
                print(f"  {answer.rank}. {answer.text} ({answer.confidence:.3f})")

        # The same job under the same key is one job, however often it is sent.
        first = producer.submit(jobs[0].model_copy(update={"idempotency_key": "eggs-1"}))
        again = producer.submit(jobs[0].model_copy(update={"idempotency_key": "eggs-1"}))
        print(f"sent twice, one job: {first.id == again.id}")
        print(f"answer: {producer.wait(first, WAIT_S).answers[0].text}")

        try:
            producer.submit({"kind": "reasoning", "question": "1+1?", "options": {"rollouts": 0}})
        except InvalidJob as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    try:
        main()
    except MarcoError as error:
        sys.exit(f"{type(error).__name__}: {error}")
