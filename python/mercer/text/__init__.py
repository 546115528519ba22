"""Text encoders (torch)."""

from mercer.text.minilm import Embeddings, MiniLM

__all__ = ["Embeddings", "MiniLM"]
