"""A `VideoNSACache` in a folder, and back: whole or not at all, for the model that filled it."""
