"""Measurements: each a script that writes the figures the documents quote."""
