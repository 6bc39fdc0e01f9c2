"""Where the clients' part of a round is run."""
