"""Format 2: as format 1, but nothing is logged after a job's end except that it was archived.

What is taken over from format 1 is named here; what changes next becomes format 3.
"""

from __future__ import annotations

from marco_search.audit import v1

KINDS = v1.KINDS
PAYLOAD = v1.PAYLOAD
LATE_EVENTS = ()
check_numbers = v1.check_numbers
