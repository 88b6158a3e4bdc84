"""Runs jobs: takes messages from the queue, claims jobs, searches, stores every round.

- main: the entry of `marco worker`; app: Celery; consumer: how it outlasts trouble with Redis
- process: what one worker process holds (settings, database, runtime); shutdown, watchdog
- runner: one job from claim to end; journal: its rounds and its lease; finish: its end
- scheduler: publishes due jobs, takes jobs back from lost workers, ends expired ones
"""
