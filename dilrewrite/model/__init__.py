"""The user's file: read, checked, its sizes believed or not, written."""
