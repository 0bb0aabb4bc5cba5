"""What the kinds stand on: claiming, running in batches, finishing."""
