"""The pages that are written from committed results."""
