"""Jobs that make a version in another form."""
