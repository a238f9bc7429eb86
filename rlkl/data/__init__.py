"""Prompts: from files, Hugging Face datasets and built-in worlds to token ids."""

from rlkl.data.prompts import PromptSource, load_prompts
from rlkl.data.report import BadRow, DataReport

__all__ = ["BadRow", "DataReport", "PromptSource", "load_prompts"]
