"""Forebay's own API, below /api/v1: jobs, models and queues, with problem details of RFC 9457."""
