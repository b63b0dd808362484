"""Start MONAI Label with this app on a folder of images, for this machine alone.

    python label_app/start.py --studies DIR [--port 8000] [--bundle bundle] [--host 127.0.0.1] [--names NAME]
        [--token TOKEN] [--without_suggestion 0.1] [--repeated 0]

DIR holds images directly; labels, fine-tuned models and the server's state go into folders beside them. --host 0.0.0.0
opens the server to the network: clients then need the token that is printed (--token names one of your own, `--token
none` asks for none) and the name under which they reach it (--names). Of the images in the page, the fraction
--without_suggestion is shown without the model's suggestion and the fraction --repeated comes a second time. Readers,
their roles and images are in DIR/study.json (docs/annotate.md). Research software, not a medical device.
"""

import functools
import importlib.util
import json
import logging
import os
import secrets
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

from filelock import FileLock, Timeout

APP = Path(__file__).resolve().parent
ROOT = APP.parent
LOCAL = "127.0.0.1,localhost"
SIGNS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is taken for another
lock = []  # of the folder, as long as this process lives
sys.path[:0] = [str(APP), str(ROOT / "bundle")]

from breast_ultrasound.cli import run  # noqa: E402


def start(
    studies: Path,
    port: int = 8000,
    bundle: Path = ROOT / "bundle",
    host: str = "127.0.0.1",
    names: str = "",
    token: str = "",
    without_suggestion: float = 0.1,
    repeated: float = 0.0,
) -> None:
    """Check what is given, and become the server.

    Args:
        studies: folder of images.
        port: where the server listens; 0: any that is free.
        bundle: folder of the bundle.
        host: address to listen on.
        names: further host names under which clients may reach the server, separated by commas.
        token: what clients must know where the server listens to the network; one is made by default.
        without_suggestion: fraction of the images that the page shows without the model's suggestion.
        repeated: fraction of the images that a reader sees a second time in the page.

    Raises:
        ValueError: an option is not valid, or another server works on the folder.
        FileNotFoundError: the folder or the bundle's weights are missing.
    """
    if importlib.util.find_spec("monailabel") is None:
        raise ValueError(
            "MONAI Label is missing; docs/annotate.md tells how to install it in an environment of its own"
        )
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}; use a number from 1 to 65535, or 0 for any that is free")
    for name, fraction in (("without_suggestion", without_suggestion), ("repeated", repeated)):
        if not 0 <= fraction <= 1:
            raise ValueError(f"--{name} is {fraction}; use a number from 0 to 1")
    from breast_ultrasound.images import is_dicom, is_image_name
    from lib.study import read_study  # needs packages that come with MONAI Label

    folder, bundle = studies.resolve(), bundle.resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one that holds images")
    found = [file for file in folder.iterdir() if file.is_file()]
    if not any(is_image_name(file) for file in found) and any(is_dicom(file) for file in found):
        raise ValueError(f"{folder}: DICOM alone; make PNGs without names of it: scripts/prepare.py --layout dicom")
    if not (bundle / "models" / "model.pt").is_file():
        raise FileNotFoundError(f"{bundle / 'models' / 'model.pt'}: missing; train the bundle first (README.md)")
    token = token.strip()  # as the page's form and HTTP's headers are
    if not token and not is_local(host):
        token = new_token()
    token = "" if token == "none" else token
    study = read_study(folder)
    tokens = {} if is_local(host) or not token else reader_tokens(folder, list(study.readers))
    paths = [APP, bundle]
    if importlib.util.find_spec("torchvision") is None:
        paths.append(APP / "shim")
    try:
        # Goes with the process, however that ends. Two servers would take labels and models from one another.
        lock.append(FileLock(folder / ".server.lock").acquire(blocking=False))
    except Timeout:
        raise ValueError(f"{folder}: another server works on this folder; use that one, or end it first") from None
    listening = take_address(host, port)
    port = listening.getsockname()[1]
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "LABEL_APP_ADDRESS": address,
        "LABEL_APP_HOSTS": names if host == "0.0.0.0" else ",".join(filter(None, (host, names))),
        "LABEL_APP_TOKEN": token,
        "LABEL_APP_READERS": json.dumps(tokens),
        # Calls of the server's own processes to itself must not leave by a proxy.
        "no_proxy": ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOCAL))),
        # The app has its own ways, which do not lose what another process wrote and do not keep the processor busy.
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    print(f"{folder}: images and labels. Research software, not a medical device. Starting ...", flush=True)
    if token:
        print(f"Token to log in with: {token}", flush=True)
    for name, own in tokens.items():
        print(f"Token of {name} ({study.role(name)}): {own}", flush=True)
    command = ["start_server", "--app", str(APP), "--studies", str(folder), "--conf", "bundle", str(bundle)]
    command += ["--conf", "without_suggestion", str(without_suggestion), "--conf", "repeated", str(repeated)]
    command += ["--uvicorn_app", "lib.server:app", "--log_level", "warning", "--host", host, "--port", str(port)]
    serve(command, variables, listening)


def new_token() -> str:
    """A token that people can type."""
    return "".join(secrets.choice(SIGNS) for _ in range(12))


def reader_tokens(folder: Path, names: list[str]) -> dict[str, str]:
    """A token for each reader by name, the same at every start; the file that keeps them is for its owner alone."""
    from breast_ultrasound.files import write_json  # which brings numpy

    file = folder / ".tokens.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tokens = {name: known.get(name) or new_token() for name in names}
    if tokens != known:
        mask = os.umask(0o077)
        write_json(file, {**known, **tokens})
        os.umask(mask)
    return tokens


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def take_address(host: str, port: int) -> socket.socket:
    """Listen before the server has loaded everything: nobody else takes the port meanwhile, and browsers wait.

    Raises:
        ValueError: the address is taken, or not of this machine.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        cause = str(error.strerror or error).partition(" (while")[0]  # where to is said already
        raise ValueError(f"--host {host} --port {port}: {cause}; use another port") from None


def serve(command: list[str], variables: dict[str, str], listening: socket.socket) -> None:
    """Become MONAI Label's server, until it is ended.

    Args:
        command: of MONAI Label.
        variables: of the environment.
        listening: where clients connect.

    Raises:
        ValueError: MONAI Label is missing.
    """
    os.environ.update(variables)
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["monailabel", *command]
    try:
        import uvicorn
        from monailabel.main import Main
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is missing; docs/annotate.md installs it, in an environment of its own"
        ) from None

    uvicorn.Server.run = functools.partialmethod(uvicorn.Server.run, sockets=[listening])
    Main(loglevel=logging.WARNING).run()


if __name__ == "__main__":
    run(start)
