"""Tune jobs: parameters are searched by training jobs, the trials."""
