"""Ready-made rewards, named in a recipe as ``reward_models:Name``.

Importing this package is quick: each reward loads what it needs when it is set up.
"""

from reward_models.answers import ExactMatch, NumericMatch
from reward_models.classifier import SequenceClassifier
from reward_models.code_execution import CodeExecution
from reward_models.ensemble import Ensemble
from reward_models.formats import FormatMatch, Length, Regex
from reward_models.json_schema import JsonSchema
from reward_models.judge import Judge
from reward_models.math_answer import MathAnswer
from reward_models.reasoning_gym import ReasoningGym
from reward_models.sentiment import SentimentLexicon

__all__ = [
    "CodeExecution",
    "Ensemble",
    "ExactMatch",
    "FormatMatch",
    "JsonSchema",
    "Judge",
    "Length",
    "MathAnswer",
    "NumericMatch",
    "ReasoningGym",
    "Regex",
    "SentimentLexicon",
    "SequenceClassifier",
]
