"""Model families: one file each, with what is its own."""
