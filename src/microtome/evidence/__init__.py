"""What compression did, measured on the runtime's own output, and where it comes from."""
