"""What embeddings are good for: comparison, plots, pictures."""
