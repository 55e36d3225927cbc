"""The commands, a module each: `add` tells argparse what it takes, `run` returns what is printed."""
