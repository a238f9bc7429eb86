"""A training run: setting it up, its loop, collecting rollouts, checkpoints and resuming."""
