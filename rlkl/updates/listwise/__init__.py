"""The rule listwise (PLD). `rule.py` holds it; README.md gives its objective, settings, metrics and measured runs."""
