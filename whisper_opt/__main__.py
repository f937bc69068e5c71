"""``python -m whisper_opt`` is the ``whisper-opt`` command."""

import sys

from whisper_opt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
