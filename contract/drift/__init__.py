"""Watching a version for drift: what its inputs and outputs were like, what they are like now, and how far apart that is."""
