"""The study: NSA and dense twins of the embedded model's size, trained alike (docs/study.md)."""
