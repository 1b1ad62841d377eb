"""How well a model predicts: perplexities, last words, continuations, EleutherAI's harness."""

from .perplexity import Evaluation, evaluate_stream, evaluate_windows
from .runs import evaluate_run

__all__ = ["Evaluation", "evaluate_run", "evaluate_stream", "evaluate_windows"]
