"""What somebody else's package would bring: found when it is named, and not otherwise."""
