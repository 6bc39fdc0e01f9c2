"""Deals rows to clients."""
