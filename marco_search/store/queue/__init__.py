"""The queue: submitting, claiming, leases, limits, pauses, dead letters."""
