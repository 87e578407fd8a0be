"""llem: how big should the model be, on how many tokens, and what will it cost?"""

from llem._version import __version__

__all__ = ["__version__"]
