"""Training, exporting and evaluating the quickstart model; `train.py` beside this folder is its command line."""
