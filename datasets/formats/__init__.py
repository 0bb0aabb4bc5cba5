"""One file for each format of input, and how files are found and opened."""
