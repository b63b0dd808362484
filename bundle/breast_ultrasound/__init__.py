"""The bundle's Python: what JSON cannot say. Configs address it as ``breast_ultrasound.<module>.<name>``.

``Predictor`` and ``Prediction`` can be imported from here.
"""

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
# Folder of the bundle: beside the package in a checkout and in the Model Zoo, inside it where pip installed a wheel.
BUNDLE = _PACKAGE / "bundle" if (_PACKAGE / "bundle").is_dir() else _PACKAGE.parent
__all__ = ["BUNDLE", "Prediction", "Predictor"]


def bundle_version() -> str:
    """The bundle's version, from its metadata."""
    return json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]


def __getattr__(name: str) -> Any:  # PyTorch and MONAI take seconds to load, which the command line does without
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import predictor

    return getattr(predictor, name)
