"""``python -m pymic_vf``: the command ``pymic_vf``."""

import sys

from pymic_vf.cli import main

sys.exit(main())
