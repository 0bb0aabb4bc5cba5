"""Writes the pages of docs/reference/, and the tables of docs/how-to/train.md, from the code: `python -m docs.generate`.

`--check` writes nothing and exits with 1 when a page is not what the code says.
"""
