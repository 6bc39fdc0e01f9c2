"""Zenoh: nodes of a graph without a server, each in a process of its own, over mTLS."""
