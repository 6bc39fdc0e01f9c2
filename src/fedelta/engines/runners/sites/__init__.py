"""A site for itself: the process that answers in its name, and certificates for a trial."""
