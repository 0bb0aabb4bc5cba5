"""Compress jobs: a new version whose weights take less room, held against the one it is made from."""
