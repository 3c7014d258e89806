"""PCT-Net and Volume Fusion pretraining (MIS-FM) as a plug-in for PyMIC.

Importing the package registers it with PyMIC, as torch's own plug-in loading does in PyMIC's commands.
It imports neither torch nor PyMIC.
"""

from pymic_vf._version import __version__
from pymic_vf.plugin import autoload, register

__all__ = ["__version__", "register"]

autoload()
