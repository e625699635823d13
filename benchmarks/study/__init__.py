"""The study: NSA and dense twins of the embedded model's size (docs/study.md)."""
