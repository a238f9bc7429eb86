"""What a reward is: its function, its arguments, its result, and where it comes from."""
