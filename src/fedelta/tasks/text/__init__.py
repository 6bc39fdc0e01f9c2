"""What several tasks of text call, by topic."""
