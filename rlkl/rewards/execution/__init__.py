"""Where and how a reward function runs."""
