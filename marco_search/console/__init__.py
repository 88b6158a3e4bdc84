"""The web console: jobs and their trees in a browser, read-only.

- server, app: listening, and the routes; access: who may look
- reader, shared: what is read from Postgres, and how often
- rendering, templates/, static/: the pages; report: one job as a file of its own

Server-rendered; the scripts are plain ES modules that need no build. Nothing on a page comes
from another host.
"""
