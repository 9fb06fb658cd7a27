"""Trained networks made small and fast: pruned, quantized, clipped, distilled and fine-tuned, in any chain.

The names in `__init__.pyi` are imported at their first use, so that `import decant` costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
