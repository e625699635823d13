"""VideoNSA inside the engines of others."""
