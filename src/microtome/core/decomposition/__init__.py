"""Weights as products of smaller ones: each function takes a tensor (outputs, inputs, *kernel) and returns factors."""
