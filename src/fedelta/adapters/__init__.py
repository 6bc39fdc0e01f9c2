"""Merges and inspects PEFT folders without a run."""
