"""Entry point of ``python -m gptheory``."""

import sys

from .studies.reproduce import main

sys.exit(main())
