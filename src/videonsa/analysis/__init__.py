"""The findings of the paper, measured: one file each, and what they share."""
