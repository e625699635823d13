"""An OpenAI-compatible endpoint: a thin front on sessions, whose HTTP is that of libraries."""
