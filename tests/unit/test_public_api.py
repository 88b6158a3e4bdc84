"""What `from marco_search import ...` gives, and what it does not load."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from functools import partial
from typing import Any, get_type_hints

import pytest

import marco_search
from marco_search import settings
from marco_search.errors import InvalidJob
from marco_search.jobs import SearchOptions, SearchOptionsDict
from marco_search.kinds import ReasoningJob
from marco_search.search.config import STRATEGIES
from marco_search.store.queue.batches import Batch, BatchLine
from marco_search.store.queue.dead_letters import DeadLetter

RECORDS = ("Answer", "Job", "JobHandle", "JobResult", "JobStatus", "ReasoningJob", "SearchOptions")


def test_every_public_name_can_be_imported() -> None:
    for name in marco_search.__all__:
        assert getattr(marco_search, name) is not None
    listed = subprocess.check_output(
        [sys.executable, "-c", "import marco_search; print(*dir(marco_search))"], text=True
    )
    assert {*marco_search.__all__} <= {*listed.split()}
    with pytest.raises(AttributeError, match="no attribute 'solv'"):
        _ = marco_search.solv


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("__version__", ("pydantic", "numpy", "celery", "psycopg")),
        ("ReasoningJob", ("numpy", "celery", "psycopg", "marco_search.engine")),
        ("Producer", ("numpy", "celery", "marco_search.engine")),
    ],
)
def test_importing_a_name_loads_only_what_it_needs(name: str, absent: tuple[str, ...]) -> None:
    code = f"from marco_search import {name}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*absent} & {*done.stdout.split()}


@pytest.mark.parametrize(
    "record", [*map(partial(getattr, marco_search), RECORDS), Batch, BatchLine, DeadLetter]
)
def test_help_describes_every_field(record: type) -> None:
    for field in get_type_hints(record):
        if not field.startswith(("_", "model_")) and field != "subject_field":
            assert re.search(rf"\b{field}\b", str(record.__doc__)), f"{field} is not described"


def test_solve_takes_the_fields_of_search_options() -> None:
    assert [*get_type_hints(SearchOptionsDict)] == [*SearchOptions.model_fields]


def test_solve_names_what_it_can_t_take() -> None:
    wrong: Any
    for wrong in (None, 5, b"What?", {"kind": "reasoning"}):
        with pytest.raises(InvalidJob, match="must be a job, or a question as text"):
            marco_search.solve(wrong, rollouts=2)
    job = ReasoningJob(question="2+2?")
    with pytest.raises(InvalidJob, match="options"):
        marco_search.solve(job.model_copy(update={"options": 5}))
    with pytest.raises(TypeError, match="what open_runtime returns"):
        marco_search.solve(job, runtime="embedded")  # type: ignore[arg-type]


def test_the_strategies_stand_in_the_description_of_the_option() -> None:
    description = str(SearchOptions.model_fields["strategy"].description)
    assert all(name in description for name in STRATEGIES)


def test_an_old_name_of_a_setting_works_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARCO_WORKER_SWEEPS", "false")
    settings.load.cache_clear()
    with pytest.warns(FutureWarning, match="MARCO_WORKER_SWEEPS is now MARCO_WORKER_SCHEDULER"):
        assert not settings.load().worker_scheduler
    monkeypatch.setenv("MARCO_WORKER_SCHEDULER", "true")
    settings.load.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settings.load().worker_scheduler
    settings.load.cache_clear()
