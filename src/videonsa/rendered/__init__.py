"""Videos that are drawn, with questions whose answers are known."""
