"""Several clients in one pass of the model."""
