"""The name, unit and meaning of every metric."""
