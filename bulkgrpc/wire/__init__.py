"""Stream messages as the server sees them."""
