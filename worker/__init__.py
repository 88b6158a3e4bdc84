"""Runs jobs: takes ids from the queue, claims the rows, searches, keeps every round.

- main: the entry of `marco worker`; app, tasks: Celery
- process: what one worker process holds (database, runtime)
- runner: one job from claim to end; journal, lease: its rounds and its heartbeat
- failures: what an error means for the job; sweep: what the broker must be told again
"""
