"""Fuzzing of everything that reads input from outside: `make fuzz SECONDS=600`."""
