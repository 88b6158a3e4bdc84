"""Read models of jobs."""
