"""What rich draws, with the control characters of the data shown instead of obeyed."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from marco_search.text import escaped


class Escaping(RenderHook):
    """Goes over everything that a console is about to draw."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Each of them, escaped as it is drawn."""
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inner, options):
            # Colours are styles, not text: rich's own controls are marked as such.
            known = segment.control or segment.text.isprintable()
            yield segment if known else Segment(escaped(segment.text), segment.style)
