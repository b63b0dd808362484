"""What the commands share: the command line, the bundle's commands, pages, exports."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))
