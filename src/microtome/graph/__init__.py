"""The captured graph is the model: capture, look-up, quantizer nodes, save and load."""
