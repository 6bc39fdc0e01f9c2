"""Reads rows from their sources."""
