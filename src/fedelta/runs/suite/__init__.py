"""Runs a suite: several methods in several settings over several seeds, each tuned by itself, and gathers what came out."""
