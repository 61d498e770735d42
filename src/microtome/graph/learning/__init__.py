"""Grids and roundings that are learned."""
