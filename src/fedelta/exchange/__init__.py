"""Messages between server and clients: stages, bytes, files, updates on disk."""
