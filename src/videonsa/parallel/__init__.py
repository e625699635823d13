"""One sequence over several processes: who has which rows, and what they cp_group."""
