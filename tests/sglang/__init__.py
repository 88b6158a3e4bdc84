"""Against the real SGLang server: make test-sglang."""
