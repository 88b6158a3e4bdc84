"""The real SGLang server on a CPU, with the pocket model: for tests and benches, never in use.

server: one running server and its environment; shim/: what is missing on a CPU, put on the
server's PYTHONPATH
"""
