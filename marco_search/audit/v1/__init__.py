"""What follows from what in the rows of a job, as formats 1 to 3 have it.

All rules are written down here once more, apart from the search that wrote the rows: a later
version may search, vote and read answers by other rules, and these rows are still valid.
"""
