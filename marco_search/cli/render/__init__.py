"""What the command line shows, as pure functions: data in, text out."""
