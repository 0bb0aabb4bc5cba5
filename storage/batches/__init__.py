"""Every SQL statement about batch jobs and their shards."""
