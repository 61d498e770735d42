"""nnU-Net v2 (Isensee et al., Nature Methods 2021) without its code: folder, plans, networks, pipeline."""
