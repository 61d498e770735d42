"""Following units through a graph, element by element: labels, and a rule for each operator."""
