"""What a run folder is: how it is written so that it survives a crash, and how it is read back."""

from .run import find_model, save_model
from .weights import load_model

__all__ = ["find_model", "load_model", "save_model"]
