"""The in-process engine: Llama, Qwen2 or Qwen3 decoded with NumPy, no server, no torch.

files (folder, gguf_file) -> checkpoint, tokenizer -> decoder, cache -> batch -> engine -> backend
"""
