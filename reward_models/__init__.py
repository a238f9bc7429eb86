"""Ready-made rewards and reward models, and their trainer."""
