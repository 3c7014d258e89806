"""Does pretraining help on somebody's own data: a grid of runs by PyMIC's commands, statistics and a report."""
