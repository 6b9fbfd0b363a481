"""These tests need TRITON_INTERPRET=1 from the process's start: `test_interpreted.py` beside runs them in one of their
own, and nothing else collects them."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
