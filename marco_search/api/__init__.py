"""The HTTP API: chat completions in OpenAI's shape, and jobs in ours."""
