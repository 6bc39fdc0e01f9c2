"""Passes that compute less; the rest works without any file of this folder."""
