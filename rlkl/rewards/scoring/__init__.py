"""What becomes of the values of a step's reward functions."""
