"""Training: the loop and what it minimises, conversion of dense weights, classification."""

from .trainer import TrainResult, resume, train

__all__ = ["TrainResult", "resume", "train"]
