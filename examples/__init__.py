"""Programs that show the package at work; each runs by itself."""
