"""Multi-vector retrieval."""
