"""A reward: its function, arguments, result and source."""
