"""Running a graph and looking at what flows through it."""
