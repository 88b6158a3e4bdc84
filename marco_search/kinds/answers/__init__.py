"""Answers as comparable values: numbers, units, terms, text."""
