"""The term ``rewording``: the same response under another wording of the prompt (docs/terms.md)."""
