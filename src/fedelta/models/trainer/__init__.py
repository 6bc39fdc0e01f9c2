"""Clients that train by a user's own Trainer of transformers or TRL."""
