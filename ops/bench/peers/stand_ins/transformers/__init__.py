"""Enough for `import reasoners`, which names this in an annotation."""


class StoppingCriteriaList:
    """Never made."""
