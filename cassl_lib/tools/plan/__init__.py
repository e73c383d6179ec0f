"""What a chain costs, before it is run: hours, disk and labels."""
