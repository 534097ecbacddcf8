"""What several test files and the programs that they start share."""
