"""Start MONAI Label with this app on a folder of pictures, for this machine alone.

    python label_app/start.py --studies DIR [--port 8000] [--bundle bundle] [--host 127.0.0.1] [--names NAME]

DIR holds pictures (png, jpg, bmp, tif) directly; labels, fine-tuned models and the server's state go into folders
beside them. --host 0.0.0.0 opens the server to the network: it has no log-in, so put one in front (docs/annotate.md)
and give the name under which clients reach it with --names. Research software, not a medical device.
"""

import importlib.util
import os
import sys
from pathlib import Path

APP = Path(__file__).resolve().parent
ROOT = APP.parent
LOCAL = "127.0.0.1,localhost"
sys.path.insert(0, str(ROOT / "scripts"))

from command_line import run  # noqa: E402


def start(
    studies: Path, port: int = 8000, bundle: Path = ROOT / "bundle", host: str = "127.0.0.1", names: str = ""
) -> None:
    """Check what is given, say what to open, and become the server.

    Args:
        studies: folder of pictures.
        port: where the server listens.
        bundle: folder of the bundle.
        host: address to listen on.
        names: further host names under which clients may reach the server, separated by commas.

    Raises:
        ValueError: an option is not valid.
        FileNotFoundError: the folder or the bundle's weights are missing.
    """
    if not 0 < port < 65536:
        raise ValueError(f"--port is {port}; use a number from 1 to 65535")
    folder, bundle = studies.resolve(), bundle.resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one that holds pictures")
    if not (bundle / "models" / "model.pt").is_file():
        raise FileNotFoundError(f"{bundle / 'models' / 'model.pt'}: missing; train the bundle first (README.md)")
    paths = [APP, bundle]
    if importlib.util.find_spec("torchvision") is None:
        paths.append(APP / "shim")
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "LABEL_APP_HOSTS": names if host == "0.0.0.0" else ",".join(filter(None, (host, names))),
        # Calls of the server's own processes to itself must not leave by a proxy.
        "no_proxy": ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOCAL))),
        # The app has its own ways, which do not lose what another process wrote and do not keep the processor busy.
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    print(f"{folder}: pictures and labels. Research software, not a medical device.")
    print(f"Open {address} to look; give {address} to 3D Slicer or CVAT (docs/annotate.md). Ctrl-C ends it.")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(folder)]
    command += ["--conf", "bundle", str(bundle), "--uvicorn_app", "lib.server:app"]
    command += ["--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **variables})


if __name__ == "__main__":
    run(start)
