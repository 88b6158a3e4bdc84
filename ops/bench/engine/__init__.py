"""What ops/bench/runtime.py measures with.

simulator, texts, simulated_server: an SGLang server without a GPU; searches: ours on it;
bare: a client that does nothing else; core: the search's own time; real: the true server
"""
