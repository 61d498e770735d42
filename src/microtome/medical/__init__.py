"""Images from files, and everything between a file and the network. No torch."""
