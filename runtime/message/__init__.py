"""What a model writes, read as it comes: its thoughts, its calls of tools, and what it says."""
