"""Run the fuzzing harness; ``scripts/fuzz`` does it in the right environment."""

import sys

from tests.fuzz.campaign import main

if __name__ == "__main__":
    sys.exit(main())
