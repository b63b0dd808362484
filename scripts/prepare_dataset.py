"""The name that scripts/prepare.py had up to version 0.5; it takes the same options."""

from prepare import prepare
from tools.cli import run

if __name__ == "__main__":
    run(prepare)
