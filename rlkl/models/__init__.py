"""The policy, its reference, and its heads."""
