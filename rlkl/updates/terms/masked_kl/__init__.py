"""The term ``masked_kl``: the exact KL to a frozen model with two masks (docs/terms.md)."""
