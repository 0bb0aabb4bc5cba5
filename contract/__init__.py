"""What all parts agree on: jobs, models, requests, errors, settings, messages. Imports no other part."""
