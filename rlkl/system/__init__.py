"""What this computer is and does: its processors, libraries, interrupts, and importing a user's files."""
