"""Prompts: from files, Hugging Face datasets and built-in worlds to token ids."""

from rlkl.data.prompts import BadRow, DataReport, PromptSource, load_prompts

__all__ = ["BadRow", "DataReport", "PromptSource", "load_prompts"]
