"""From the outcomes of reward functions to one reward a sample."""
