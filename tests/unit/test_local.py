"""The embedded services: misspelt settings, and machines where they can't run."""

from __future__ import annotations

import os
import platform
import pwd
import sys
from pathlib import Path

import pytest

from marco_search.doctor import unknown_names
from marco_search.errors import LocalServiceFailed
from marco_search.local import programs


@pytest.mark.parametrize(
    "name", ["MARCO_QUEU", "MARCO_", "marco_lease", "MARCOQUEUE", "MARKO_QUEUE", "MACRO_HOME"]
)
def test_a_misspelt_name_is_seen(name: str) -> None:
    assert unknown_names({name: "x"}) == [name]


@pytest.mark.parametrize(
    "name", ["MARCO_QUEUE", "marco_home", "MARCO", "MARCOPOLO", "HOME", "DATABASE_URI", "MAKE_HOME"]
)
def test_names_of_ours_and_of_other_programs_are_left_alone(name: str) -> None:
    assert unknown_names({name: "x"}) == []


@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (sys, "platform", "darwin", "they are Linux programs"),
        (platform, "machine", lambda: "aarch64", "aarch64"),
        (platform, "libc_ver", lambda: ("", ""), "musl"),
        (platform, "libc_ver", lambda: ("glibc", "2.17"), "glibc is 2.17"),
    ],
)
def test_where_the_embedded_services_cannot_run_real_ones_do(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(sys, "path", ["/nonexistent"])  # then the installer leaves them out
    with pytest.raises(LocalServiceFailed) as refused:
        programs.installed()
    assert reason in str(refused.value)
    assert "Set DATABASE_URL to" in str(refused.value)


def test_servers_need_a_user_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2**31 - 7)  # as in some containers
    with pytest.raises(LocalServiceFailed, match="needs a user who has a name and is not root"):
        programs.is_open(Path("/"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    with pytest.raises(LocalServiceFailed, match="or set DATABASE_URL and REDIS_URL"):
        programs.is_open(Path("/"))
