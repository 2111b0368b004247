"""Puts fragments into a model: the only room that changes a model, and the only maker of names."""
