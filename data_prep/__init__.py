"""Text to token store."""
