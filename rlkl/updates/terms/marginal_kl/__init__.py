"""The term ``marginal_kl``: the KL of the mean answer of all prompts to a prior (docs/terms.md)."""
