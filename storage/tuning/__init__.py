"""Every SQL statement about tunes and their trials."""
