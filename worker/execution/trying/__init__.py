"""Trying a version: on which rows, how fast it is and what memory it takes, how far its outputs are from another one's."""
