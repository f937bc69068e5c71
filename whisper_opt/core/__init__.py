"""Base of all other packages: errors, dimensions, options, the backend protocol."""
