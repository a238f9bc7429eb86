"""The term ``span``: neighbouring tokens of one word, compared with a frozen model (docs/terms.md)."""
