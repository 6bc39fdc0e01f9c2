"""Prepares images as a model sees them, and shifts them synthetically between clients."""
