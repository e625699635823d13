"""The offline long-video suite, asked of a model: one line a question, then a report."""
