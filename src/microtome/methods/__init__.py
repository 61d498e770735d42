"""Compression methods: one algorithm, one file, one frozen dataclass, `method(network, batches) -> network`."""
