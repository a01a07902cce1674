"""Collators: from records of training data to the tensors of a batch.

A task turns one record into a ``Sample``: passages for the compressor, and a prompt for the decoder with labels on the
tokens that it learns. ``Collator`` pads samples into a batch, and checks the one rule: a prompt has exactly as many
memory tokens as its passages. For a task of your own, subclass ``Collator`` and write ``sample`` (docs/training.md has
an example).
"""

from .answering import QueryDependent, QuestionAnswering
from .base import Collator, Record, Sample
from .pretraining import Autoencoding, Continuation, Pretraining, TooShortError

__all__ = [
    "Autoencoding",
    "Collator",
    "Continuation",
    "Pretraining",
    "QueryDependent",
    "QuestionAnswering",
    "Record",
    "Sample",
    "TooShortError",
]
