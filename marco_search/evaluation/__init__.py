"""Problems with labels, searched and graded: accuracy, cost and confidence of a strategy.

- data_sets: problems; run: searches them here or through the queue; traces: what is kept
- grading: answers against labels, at smaller budgets and under other rewards
- statistics, report: the figures
"""
