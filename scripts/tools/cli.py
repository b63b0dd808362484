"""What the commands of this folder share: the command line, and the bundle's own commands."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from breast_ultrasound import BUNDLE
from breast_ultrasound.cli import as_arguments, as_ids, bundle_arguments, checked, run

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = ["as_arguments", "bundle_arguments", "checked", "run"]
ROOT = BUNDLE.parent
CONFIGS = BUNDLE / "configs"


def run_command(title: str, *arguments: object) -> None:
    """Run `python` with these arguments in the repository's root; its output is shown below the command.

    Raises:
        ValueError: the command failed; its own message stands above.
    """
    command = [str(argument) for argument in arguments]
    print(f"\n== {title}\n$ python {shlex.join(command)}", flush=True)
    start = time.time()
    if subprocess.call([sys.executable, *command], cwd=ROOT):
        raise ValueError(f"{title} failed; mend what its last line names and run the same command again")
    print(f"== {title}: {time.time() - start:.0f} s", flush=True)


def run_bundle(title: str, run_id: str, configs: str | list[str | Path], **ids: object) -> None:
    """Run one of the bundle's own commands, as `bundle_arguments` spells it.

    Raises:
        ValueError: the command failed; its own message stands above.
    """
    run_command(title, *bundle_arguments(run_id, configs, **ids))


def parse_bundle(configs: str | list[str], **ids: object) -> ConfigParser:
    """Configs of the bundle, by name, with other values for some of their ids.

    Raises:
        ValueError: naming an id that they do not have.
    """
    from monai.bundle import ConfigParser

    names = [configs] if isinstance(configs, str) else configs
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in names]))
    unknown = [name for name in ids if name not in parser]
    if unknown:
        raise ValueError(f"--{unknown[0]}: no id of {', '.join(f'bundle/configs/{name}.json' for name in names)}")
    parser.update(as_ids({"bundle_root": str(BUNDLE), **ids}))
    return parser


def load_network(ckpt_dir: str | Path, **ids: object) -> ConfigParser:
    """The bundle's inference, whose `network` has the weights of a folder and is in evaluation mode.

    Args:
        ckpt_dir: folder with `model.pt`.
        ids: ids of bundle/configs/inference.json with other values, such as `image_size=128`.

    Returns:
        the config, of which `get_parsed_content` gives `network`, `preprocessing`, `inferer`, `class_names`...

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: an id is unknown, or the weights belong to another network.
    """
    from breast_ultrasound.predictor import Predictor

    return Predictor(BUNDLE, ckpt_dir=str(ckpt_dir), **ids).config
