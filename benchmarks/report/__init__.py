"""The report docs/results.md, written from committed results."""
