"""Helpers that several methods call, by topic."""
