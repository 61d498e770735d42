"""What belongs together in a graph: channels, blocks, attention, values that meet."""
