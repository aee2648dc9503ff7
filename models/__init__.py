"""The networks, one a file, torch alone."""
