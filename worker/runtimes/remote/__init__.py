"""Models that another server runs behind an OpenAI-compatible API. Knows no torch and no device."""
