"""`python -m craft` is `craft`."""

import sys

from craft.cli import main

sys.exit(main())
