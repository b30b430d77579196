"""`python -m coterie` is the program `coterie`."""

import sys

from coterie.cli import main

sys.exit(main())
