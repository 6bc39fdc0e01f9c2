"""A config carried out: from YAML to a folder of results."""
