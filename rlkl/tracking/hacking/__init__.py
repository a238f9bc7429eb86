"""Signs that a policy exploits its reward."""
