"""Puts jobs in, reads results out. Knows contract and storage; never torch."""
