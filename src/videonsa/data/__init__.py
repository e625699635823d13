"""Training data: records, and which of them are kept. Knows no model; a tokenizer is given."""
