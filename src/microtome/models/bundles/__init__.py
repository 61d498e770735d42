"""What a MONAI bundle declares, as data: what becomes of it in microtome, and what does not."""
