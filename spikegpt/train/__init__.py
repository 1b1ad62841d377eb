"""Training: the loop and what it minimises, conversion of dense weights, classification."""

from .callbacks import Callback, EarlyStopping, EvaluationFacts, StepFacts
from .trainer import TrainResult, resume, train

__all__ = ["Callback", "EarlyStopping", "EvaluationFacts", "StepFacts", "TrainResult", "resume", "train"]
