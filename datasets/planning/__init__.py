"""Whether a data set fits a model, and how it is cut into shards."""
