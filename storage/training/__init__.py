"""Every SQL statement about training runs and evaluations."""
