"""The `videonsa` command."""
