"""What networks are fed with: calibration cases, training batches, and how cases are chosen."""
