"""docs/sql.md: the queries in it, which tests and a benchmark run, and its generated part."""
