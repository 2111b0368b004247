"""Chooses a form for each site."""
