"""From files to rows and arrays."""
