"""`forebay up`: everything on one machine."""
