"""The term ``consistency``: the KL between two views of a prompt (docs/terms.md)."""
