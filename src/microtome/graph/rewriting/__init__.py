"""Other forms of the same function, for runtimes that run them faster. They run on export, after all methods."""
