"""Every SQL statement about models."""
