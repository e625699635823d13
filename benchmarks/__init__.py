"""What only this repository's own pages need: not part of the package."""
