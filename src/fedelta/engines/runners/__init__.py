"""Runners: each runs the clients' part of a round in another place."""
