"""What `make bench-queue` measures with: plain Celery to compare with, and an empty search."""
