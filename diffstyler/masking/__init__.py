"""Mask prompts -> masks: one file for each way of finding things in a picture."""

from diffstyler.masking.base import Masker, NothingFoundError

__all__ = ["Masker", "NothingFoundError"]
