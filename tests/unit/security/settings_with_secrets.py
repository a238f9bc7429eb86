"""Settings of rewards that hold a secret, and settings that look as if they did."""

from __future__ import annotations

from typing import Any

HEX = "0123456789abcdef" * 2 + "01234567"
COMMIT = "89abcdef" * 5
RANDOM = "q7Zp" + "93kXw2Lr8vTn"

WITH_SECRET: dict[str, tuple[dict[str, Any], str]] = {
    "header": ({"headers": {"X-Api-Key": "abcdef123"}}, "abcdef123"),
    "dashes": ({"headers": {"api-key": "zzz"}}, "zzz"),
    "cookie": ({"headers": {"Cookie": "session=ab12cd"}}, "ab12cd"),
    "camel case": ({"clientSecret": "plain"}, "plain"),
    "camel case with capitals": ({"openaiAPIKey": "plain"}, "plain"),
    "number at the end": ({"api_key_2": "plain"}, "plain"),
    "plural": ({"api_keys": ["abc", "def"]}, "def"),
    "by service": ({"api_keys": {"judge": ["abc"]}}, "abc"),
    "deep": ({"credentials": {"login": {"who": "myself"}}}, "myself"),
    "pair": ({"auth": ["me", "hunter"]}, "hunter"),
    "labelled": ({"headers": [{"name": "X-Api-Key", "value": "plain"}]}, "plain"),
    "number": ({"password": 314159}, "314159"),
    "random under a weak name": ({"judge_token": RANDOM}, RANDOM),
    "short under a weak name": ({"key": "hunter2"}, "hunter2"),
    "query": ({"url": "https://rm.example/score?api_key=abcdef123"}, "abcdef123"),
    "second parameter": ({"url": "https://rm.example/score?n=1&access_token=abc#top"}, "abc"),
    "query without a scheme": ({"url": "rm.example/score?apiKey=abcdef"}, "abcdef"),
    "signature": ({"url": f"https://rm.example/score?sig={RANDOM}"}, RANDOM),
    "user": ({"url": "https://me:" + "hunter2@rm.example/v1"}, "hunter2"),
    "key as a user": ({"url": f"https://{RANDOM}@rm.example/v1"}, RANDOM),
    "command line": ({"command": f"serve --api-key={RANDOM} --port 80"}, RANDOM),
    "arguments": ({"arguments": [f"--api-key={RANDOM}"]}, RANDOM),
    "header as text": ({"header": f"Authorization: Bearer {RANDOM}"}, RANDOM),
    "bearer": ({"header": f"Bearer {RANDOM}"}, RANDOM),
    "JSON as text": ({"extra": f'{{"secret": "{RANDOM}"}}'}, RANDOM),
    "W&B key": ({"wandb": HEX}, HEX),
    "private key": (
        {"file": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA " + "PRIVATE KEY-----\n"},
        "IBAAK",
    ),
    "key of a mapping": ({"weights": {"hf_" + "aB3d" * 8: 0.5}}, "hf_" + "aB3d" * 8),
}
"""Case -> settings, and the secret in them."""

HARMLESS: dict[str, dict[str, Any]] = {
    "switches": {"auth": "none", "password": "False", "cookies": "off"},
    "system prompt": {"system": "/think about a/b"},
    "soft switch": {"system": "/no_think"},
    "slashes": {"text": "and/or, 1/2 or 3/4, km/h, <a>b</a>"},
    "variable": {"api_key_variable": "OPENAI_API_KEY", "credentials": {"token_variable": "HF_TOKEN"}},
    "special tokens": {"eos_token": "<|im_end|>", "token": "</s>", "stop_tokens": ["[INST]", "\n\n"]},
    "columns": {"key": "answer", "sort_key": "label_v2", "keys": ["final.answer", "item10"], "pass": "first"},
    "numbers": {"max_prompt_tokens": 16, "tokens": ["a", 1.5, True], "key": None, "password": None, "secret": True},
    "addresses": {"url": "http://127.0.0.1:8000/v1", "page": "https://host/a/b#part", "api": "https://host:80/v1"},
    "templates": {"template": "Key: {answer}\nThe password: {password_of_the_row}\nkey = sorted(x)"},
    "placeholder": {"call": "call --api-key=$OPENAI_API_KEY_2024 or --token={token_2024_123456}"},
    "revision": {"revision": COMMIT, "commit": COMMIT, "image": f"judge@{COMMIT}"},
    "author": {"author": "me", "authority": 1, "monkey": "x1y2z3", "passage": "a1b2c3", "secretary": "d4e5f6"},
    "pattern": {"pattern": r"\\boxed\{(\d+)\}"},
}
"""Case -> settings that a card shows as they are."""
