"""Outside input is accepted or refused in words, whatever it is: a short run of `make fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.inputs import near
from tests.fuzz.targets import TARGETS, check, leave_nothing, seeds

EXAMPLES = 15


@pytest.fixture(autouse=True, scope="module")
def _cleaned() -> Iterator[None]:
    yield
    leave_nothing()


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    found = seeds(name)
    assert found
    for data in found:
        check(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_near_to_the_corpus_is_read_or_refused(name: str) -> None:
    @given(near(seeds(name), TARGETS[name].largest))
    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def run(data: bytes) -> None:
        check(name, data)

    run()
