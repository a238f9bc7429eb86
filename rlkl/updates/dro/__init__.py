"""Distributionally robust training: weights of prompt groups for rules with advantages (docs/choosing_prompts.md)."""
