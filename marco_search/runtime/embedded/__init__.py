"""The in-process engine: a Qwen2-architecture model decoded with NumPy, no server, no torch.

folder -> checkpoint, tokenizer -> decoder, cache -> batch -> engine -> backend
"""
