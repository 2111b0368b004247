"""The only room that changes a model."""
