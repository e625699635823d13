"""The field's benchmarks: asked through lmms-eval, with recipes, a log and both scorings."""
