"""Flower: real sites behind a SuperLink, with TLS and node keys."""
