"""Against a real OpenAI-compatible server: make test-openai."""
