"""The benchmark, `forebay bench`: Forebay against the limit and against what a user would write instead."""
