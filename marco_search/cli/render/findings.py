"""What `marco doctor` has found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.text import Text


class Finding(Protocol):
    """One check: what was looked at, whether it is well, and what to do if it is not."""

    @property
    def name(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def detail(self) -> str: ...
    @property
    def mend(self) -> str: ...


def findings(found: Sequence[Finding]) -> Text:
    """A line for each check, and below one that failed how to mend it."""
    out = Text()
    width = max((len(finding.name) for finding in found), default=0)
    for finding in found:
        mark, style = ("ok   ", "green") if finding.ok else ("wrong", "bold red")
        out.append(mark, style=style).append(f"  {finding.name:{width}}  {finding.detail}\n")
        if not finding.ok and finding.mend:
            out.append(f"{'':7}{'':{width}}  {finding.mend}\n", style="yellow")
    bad = sum(1 for finding in found if not finding.ok)
    out.append("All well." if not bad else f"{bad} of {len(found)} wrong.", style="bold")
    return out
