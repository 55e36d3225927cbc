"""`python -m msgdas.engine`, the console script under a name that torchrun can start."""

from .cli import run

if __name__ == "__main__":
    run()
