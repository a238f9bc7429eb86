"""The term ``replay``: general samples against forgetting (docs/replay.md)."""
