"""Local rules and server optimisers around another method."""
