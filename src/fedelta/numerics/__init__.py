"""Numerical routines that know nothing of adapters."""
