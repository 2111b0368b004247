"""Proves forms and whole models equal."""
