"""Fine-tuning a language model: texts to tokens, the adapter that is learned, and a run's data. Serving shares the first two."""
