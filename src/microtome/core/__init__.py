"""Arithmetic on tensors: number formats, ranges, observers. Torch only: no modules, no files, no logging."""
