"""All access to Postgres: jobs and their leases, the append-only trail, and reads of both.

- db, postgres: pooled connections with deadlines, addresses, and what errors mean
- queue: submit, claim, lease, recover; trail: rounds in, rounds out; reads: what a reader sees
- seal: chain, anchors, archives and verification; views, roles: the public SQL and its rights

Every function takes a connection inside a transaction, so that callers decide what is
committed together. All times are the database's.
"""
