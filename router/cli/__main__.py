"""``python -m router.cli`` is `nenya`."""

import sys

from router.cli import main

sys.exit(main())
