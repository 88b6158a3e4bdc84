"""One file for each migration. A released one is never edited."""
