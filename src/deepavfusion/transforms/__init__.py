"""Pixels and sound to what the model sees."""
