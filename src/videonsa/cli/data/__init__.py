"""`videonsa data`."""
