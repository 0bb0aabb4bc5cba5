"""What a job of each kind asks for, as both ends see it."""
