"""What a question costs, before weights are loaded."""
