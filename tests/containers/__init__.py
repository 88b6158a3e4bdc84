"""The containers on a real Docker engine (make test-containers)."""
