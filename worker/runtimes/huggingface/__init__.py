"""The runtime `transformers`: folders of Hugging Face's library, by what their models do."""
