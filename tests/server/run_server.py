"""``pllm run`` with the engine whose model is a function."""

import argparse
import sys

from pllm.runtime.server.cli import add_arguments, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.set_defaults(engine_core="fake_core:open_core")
    sys.exit(main(parser.parse_args()))
