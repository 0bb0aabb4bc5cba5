"""Models in memory, written as the files that runtimes serve. Beside the worker, the only part that imports torch."""
