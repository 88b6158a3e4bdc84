"""Enough for `import reasoners`, whose search uses nothing of torch."""
