"""What every other package stands on: errors, dimensions, options, the backend protocol."""
