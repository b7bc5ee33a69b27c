"""What asks an endpoint: chat in a terminal, and load."""
