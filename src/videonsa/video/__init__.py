"""Video files to frames to tokens. Knows neither attention nor models."""
