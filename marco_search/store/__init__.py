"""What Postgres holds: jobs and their leases, the append-only trail, and how both are read.

- models: the tables; views, guards: what the migrations add to them in SQL
- connect: pooled connections with deadlines
- states: the life of a job
- jobs: submit, cancel; leases: claim, heartbeat, end; outbox: what must still be published
- trail: rounds in, rounds out; queries: what a reader sees

Every function takes a connection inside a transaction, so that callers decide what is
committed together. All times are the database's.
"""
