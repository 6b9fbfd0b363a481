"""What the server costs when its model costs nothing. ``make bench-edge`` runs it."""
