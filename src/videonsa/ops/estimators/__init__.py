"""Estimators: from the queries and keys of a prompt, which keys its rows attend to."""
