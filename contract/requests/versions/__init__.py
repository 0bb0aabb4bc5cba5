"""What jobs ask for that make, measure or describe a version of a model."""
