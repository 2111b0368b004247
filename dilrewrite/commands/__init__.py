"""One command, from files to a report."""
