"""The embedded default: made-up brain slices, and a small network that was trained on them."""
