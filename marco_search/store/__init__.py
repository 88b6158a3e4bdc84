"""What Postgres holds: jobs and their leases, the append-only trail, and how both are read.

- db, postgres: pooled connections with deadlines, addresses, and what errors mean
- queue: submit, claim, lease, recover; trail: rounds in, rounds out; reads: what a reader sees
- seal: chain, anchors, archives and verification; views, roles: the public SQL, and who sees what

Every function takes a connection inside a transaction, so that callers decide what is
committed together. All times are the database's.
"""
