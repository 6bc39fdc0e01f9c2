"""Functions that several tasks of text call, by topic."""
