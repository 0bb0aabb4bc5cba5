"""The commands under `forebay models`."""
