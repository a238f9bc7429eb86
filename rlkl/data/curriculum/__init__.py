"""Draws of prompts that depend on earlier rewards: ``data.sampler`` (docs/choosing_prompts.md)."""
