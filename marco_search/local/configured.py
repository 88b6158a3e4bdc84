"""The doctor's look at the environment: values that would be refused, names that nobody reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches

from marco_search.jobs.validation import nearest
from marco_search.local.finding import Finding
from marco_search.settings import Settings, console_refusal, worker_refusal

_OTHERS = {"MARCO_PYTHON", "MARCO_CHROMIUM"}  # read by the bootstrap and by tests


def settings(here: Settings) -> Finding:
    """Would the worker and the console start with these?"""
    refused = [said for said in (worker_refusal(here), console_refusal(here)) if said]
    detail = "; ".join(refused) or "as the worker and the console take them"
    return Finding("settings", not refused, detail, "change them")


def variables(_: Settings) -> Finding:
    """Does something read each MARCO_ variable?"""
    unread = unknown_names(os.environ)
    detail = "; ".join(map(_unread, unread)) or "every MARCO_ name is known"
    return Finding("variables", not unread, detail, "unset them, or write them as in the README")


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """The names that look like settings of ours and are none."""
    known = _known()
    ours = [name for name in known if name.startswith("MARCO_")]
    return sorted(
        name
        for name in environment
        if name.upper() not in known
        and (name.upper().startswith("MARCO_") or get_close_matches(name.upper(), ours, 1, 0.88))
    )


def _unread(name: str) -> str:
    meant = nearest(name, [known.lower() for known in _known()])
    return f"{name} is read by nothing" + (f", did you mean {meant.upper()}?" if meant else "")


def _known() -> set[str]:
    return _OTHERS | {str(f.validation_alias) for f in Settings.model_fields.values()}
