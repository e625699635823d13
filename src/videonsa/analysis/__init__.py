"""The findings of the paper, measured: one file each, and what they share.

`registry.FINDINGS` lists them. A finding is a `Finding`: a frozen dataclass with what was measured,
written as JSON, and a drawing made from that alone.
"""
