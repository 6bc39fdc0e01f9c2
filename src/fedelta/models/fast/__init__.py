"""Passes that compute less. Nothing imports a file of this folder by name: `fedelta.models.passes` finds them."""
