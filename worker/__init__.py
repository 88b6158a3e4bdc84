"""Runs jobs: takes messages from the queue, claims jobs, searches, stores every round.

- main: entry point of `marco worker`; app: Celery; consumer: survives failures of Redis
- process: state of one worker process (settings, database, runtime); shutdown, watchdog
- runner: one job from claim to end; journal: its rounds and its lease; finish: its end
- scheduler: publishes due jobs, reclaims jobs of lost workers, ends expired ones
"""
