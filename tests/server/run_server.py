"""``pllm run`` with the engine whose model is a function."""

import sys

from pllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--engine-core", "fake_core:open_core", *sys.argv[1:]]))
