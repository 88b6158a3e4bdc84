"""What `ops/bootstrap.py` does once it runs on a supported Python. Standard library only."""
