"""Numbers on the command line, within what takes them."""

from __future__ import annotations

import math
from typing import Any

import click

LARGEST_COUNT = 2**31 - 1  # Postgres' integer


def count(least: int = 0) -> click.IntRange:
    """A number of rows or jobs."""
    return click.IntRange(min=least, max=LARGEST_COUNT)


class Seconds(click.FloatRange):
    """A finite time: NaN is within every range and ends no wait."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Fails for one that is not finite."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds
