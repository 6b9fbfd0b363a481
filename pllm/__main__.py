"""``python -m pllm``: the command line."""

import sys

from pllm.cli import main

sys.exit(main())
