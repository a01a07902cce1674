"""Many questions answered in batches, and the file of their answers.

Names are loaded when they are first used: files of answers are read without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
