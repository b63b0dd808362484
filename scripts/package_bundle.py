"""Pack the bundle as the MONAI Model Zoo names it, with a checksum beside it; the same files give the same bytes.

    python scripts/package_bundle.py [--output_dir dist]

Out: `breast_ultrasound_segmentation_classification_v<version>.zip` and the same name with `.sha256`, which
`sha256sum --check` reads. In it: licence, configs, documents, Python code, weights, their calibration and
input check; no caches, runs or data. The model card stands at the top too, as README.md with the head that a Hugging
Face page needs.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tools.cli import BUNDLE, run

NAME = "breast_ultrasound_segmentation_classification"
CONTENT = (
    "LICENSE",
    "configs/*.json",
    "configs/logging.conf",
    "docs/*.md",
    "docs/*.txt",
    "models/model.pt",
    "models/model.json",
    "models/input_check.pt",
    "models/calibration.json",
    "models/small/*",
    "breast_ultrasound/*.py",
)
HEAD = """---
license: apache-2.0
library_name: monai
pipeline_tag: image-segmentation
tags:
- monai
- medical
- ultrasound
- breast
- image-classification
---
"""
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def package_bundle(output_dir: Path = Path("dist")) -> None:
    """Write the zip and its checksum.

    Args:
        output_dir: folder to write to.

    Raises:
        FileNotFoundError: the bundle lacks one of its files.
    """
    from breast_ultrasound.files import sha256, write_whole

    files = {"README.md": HEAD.encode() + (BUNDLE / "docs/README.md").read_bytes()}
    for pattern in CONTENT:
        found = sorted(BUNDLE.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{BUNDLE / pattern}: missing; the package needs it")
        files |= {file.relative_to(BUNDLE).as_posix(): file.read_bytes() for file in found}
    version = json.loads((BUNDLE / "configs/metadata.json").read_text(encoding="utf-8"))["version"]
    target = output_dir / f"{NAME}_v{version}.zip"
    write_whole(target, lambda path: _zip(path, files))
    checksum = target.with_suffix(".zip.sha256")
    write_whole(checksum, lambda path: Path(path).write_text(f"{sha256(target)}  {target.name}\n", encoding="utf-8"))
    print(f"{len(files)} files, {target.stat().st_size / 1e6:.1f} MB: {target}")


def _zip(path: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", LONG_AGO)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


if __name__ == "__main__":
    run(package_bundle)
