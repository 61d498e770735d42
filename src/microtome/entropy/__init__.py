"""Entropy coding of model files: numpy only, exact to the bit, and checked when read."""
