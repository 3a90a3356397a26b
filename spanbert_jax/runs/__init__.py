"""What a command runs, from files to a report."""
