"""Compile time: recipe to artifact."""
