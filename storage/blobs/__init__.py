"""Content-addressed blobs, and where a payload lies."""
