"""Entry point of ``python -m gptheory``."""

import sys

from .reproduce import main

sys.exit(main())
