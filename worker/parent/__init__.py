"""The process that talks to Redis and never runs a model."""
