"""OpenAI's API below /v1: models, embeddings, files, batches."""
