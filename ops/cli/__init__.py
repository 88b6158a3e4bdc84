"""The command line `marco`. Its modules import what is heavy only when a command runs."""
