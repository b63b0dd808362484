"""Print a requirements file from pyproject.toml, with the exact versions that this environment has.

    python scripts/tools/pins.py dev > requirements.txt
    .venv-label/bin/python scripts/tools/pins.py label > requirements-label.txt

`make requirements` does both. Needs no package: each of the two environments runs it.
"""

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
HEAD = """# Made from pyproject.toml by `make requirements`; do not edit.
# On Linux the default build of torch brings several gigabytes of CUDA; PyTorch's installation page tells how to get
# the CPU build.
"""


def pinned(extra: str) -> str:
    """A requirements file of what the project needs and of an extra, with those that it includes."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists: dict[str, list[str]] = {}

    def add(name: str) -> None:
        for requirement in extras[name]:
            found = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            for included in found[1].split(",") if found else ():
                add(included)
        lists[name] = [requirement for requirement in extras[name] if not requirement.startswith(project["name"])]

    lists["prediction"] = project["dependencies"]
    add(extra)
    lines, seen = [], set()
    for title, requirements in lists.items():
        names = [re.match(r"[\w.-]+(\[.+\])?", requirement)[0] for requirement in requirements]
        new = [name for name in names if name not in seen]
        seen.update(new)
        lines += [f"# {title}"] * bool(new) + [f"{name}=={_installed(name)}" for name in new]
    return HEAD + "\n".join(lines) + "\n"


def _installed(name: str) -> str:
    """The version here, without the +cpu of a build."""
    return version(name.partition("[")[0]).partition("+")[0]


if __name__ == "__main__":
    print(pinned(sys.argv[1]), end="")
