"""One module per kind of file: each turns files into an array and, where there is one, its affine."""
