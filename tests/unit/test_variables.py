"""Names in the environment that look like settings and are none."""

from __future__ import annotations

import pytest

from marco_search.local.doctor import unknown_names


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
