"""The real SGLang server on a CPU, with the pocket model: for tests and benches, never in use.

environment: its own virtual environment; server: one running server; shim/: what is missing on
a CPU, put on the server's PYTHONPATH
"""
