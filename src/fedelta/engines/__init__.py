"""Engines: how the clients of a round are run. The same method object gives the same numbers under each."""
