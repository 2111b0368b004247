"""What of a model may be rewritten."""
