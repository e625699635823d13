"""The offline long-video suite, asked of a model: one line per question, then a report."""
