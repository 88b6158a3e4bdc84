"""How well the engine is kept busy: `make bench-runtime`.

simulator, texts, simulated_server: an SGLang server without a GPU; searches: ours on it;
bare: a client that does nothing else; core: the search's own time; real: the true server
"""
