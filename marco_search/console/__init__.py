"""The web console: jobs and their trees in a browser, read-only.

- app: the application and its pages (marco_search.http_server listens); access: who is let in
- reader: what they read from Postgres, and how often
- rendering, templates/, static/: HTML; one job as a file of its own

Pages are rendered on the server; scripts are plain ES modules that need no build. Nothing on a
page comes from another host.
"""
