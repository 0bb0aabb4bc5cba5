"""What both ends agree on: words, states, errors, settings, messages. Knows nobody."""
