"""From a compressed graph to a file that runs: export, timing, where integers pay, what really ran."""
