"""What several methods call, by topic."""
