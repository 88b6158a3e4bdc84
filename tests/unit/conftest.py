"""Unit tests: no service, and nothing that depends on how fast the machine is."""

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
