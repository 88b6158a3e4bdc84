"""Problems with labels, searched and graded: accuracy, cost and confidence of a strategy.

- data_sets: problems; run: searches them here or through the queue; traces: what is kept
- grading, curves, rescoring: answers against labels, at smaller budgets, under other rewards
- statistics, report, plots: the figures
"""
