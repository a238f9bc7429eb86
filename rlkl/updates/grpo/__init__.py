"""The rule GRPO, with the variants of DAPO, Dr. GRPO and GSPO.

`rule.py` holds it; README.md gives its objective, settings, metrics and measured runs.
"""
