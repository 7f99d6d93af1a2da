"""``python -m stn_triton``: see ``command_line``."""

import sys

from stn_triton.command_line import main

if __name__ == "__main__":
    sys.exit(main())
