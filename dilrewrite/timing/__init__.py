"""Measures, within a budget."""
