"""VideoNSA: Native Sparse Attention for video-language models (arXiv 2510.02295)."""

__version__ = "0.1.0"
