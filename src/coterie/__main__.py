"""`python -m coterie` is the program `coterie`."""

import sys

from coterie.cli.main import main

sys.exit(main())
