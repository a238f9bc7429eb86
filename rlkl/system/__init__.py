"""This computer: its processors, libraries and interrupts, and importing a user's files."""
