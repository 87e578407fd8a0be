"""Makes the module of tiny deployments importable by these tests and by the ranks they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
