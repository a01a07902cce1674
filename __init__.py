"""Precompute PISCO memory embeddings for a corpus, store them, and feed them to an LLM decoder by document id.

Everything public is listed in ``__init__.pyi`` and loaded when it is first used: ``import pisco_index`` alone loads no
torch, ray or lance.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
