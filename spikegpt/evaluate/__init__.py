"""How well a model predicts: perplexities, last words, continuations, EleutherAI's harness."""

from .perplexity import Evaluation, evaluate_run, evaluate_stream, evaluate_windows

__all__ = ["Evaluation", "evaluate_run", "evaluate_stream", "evaluate_windows"]
