"""`videonsa bench`."""
