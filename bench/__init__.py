"""The benchmark, `make bench`: Forebay against the limit and against what a user would write instead."""
