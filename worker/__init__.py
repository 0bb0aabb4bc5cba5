"""Takes jobs out, runs models. Knows contract and storage; the only part that imports torch."""
