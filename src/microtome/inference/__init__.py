"""Many images through a package: which, in what order, and where the results go. No torch."""
