"""The rule SuperHF. `rule.py` holds it; README.md gives its objective, settings, metrics and measured runs."""
