"""Answer the ultrasound images that an Orthanc receives, and store the results back into it, until stopped.

    Orthanc deploy/orthanc.json
    ORTHANC_USER=gateway ORTHANC_PASSWORD=... python scripts/gateway.py --output_dir runs/gateway

Each image of a complete series is predicted as `breast-ultrasound predict --dicom True` does it; segmentation, report
and picture go into the study that it belongs to. In --output_dir: `images.jsonl`, a line for each image and each study
(UIDs only), and `state.sqlite`, what is still to be done. Killed or stopped at any moment, the same command goes on
where it was; nothing is lost or stored twice. docs/hospital.md explains the rest. Research software, not a medical
device.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from tools.cli import BUNDLE, run


def gateway(
    output_dir: Path,
    url: str = "http://127.0.0.1:8042",
    ckpt_dir: Path = BUNDLE / "models",
    frames: str = "middle",
    objects: tuple[str, ...] = ("seg", "sr", "sc"),
    predict_refused: bool = False,
    poll: float = 2.0,
    time_limit: float = 120.0,
    health_port: int = 9108,
    health_address: str = "127.0.0.1",
    retry_failed: bool = False,
) -> None:
    """Run the gateway; the environment gives ORTHANC_USER and ORTHANC_PASSWORD.

    Args:
        output_dir: folder of the log and of what is remembered; one for each Orthanc.
        url: of Orthanc's REST API; https checks the certificate, against REQUESTS_CA_BUNDLE where that is set.
        ckpt_dir: folder of the weights.
        frames: of a cine: all, middle, every10 (any number), or the number of one.
        objects: which of seg, sr and sc to store.
        predict_refused: answer also what the input check refuses.
        poll: seconds between two looks at an idle Orthanc, above 0.
        time_limit: seconds for an image, above 0; one that takes longer counts as failed.
        health_port: port of the health page for Prometheus; 0 for none.
        health_address: address of the health page; 0.0.0.0 lets other machines read it.
        retry_failed: begin with the images that were given up.

    Raises:
        ValueError: an option, the weights or the folder is wrong, or another gateway uses the folder.
        PermissionError: Orthanc refuses the credentials, or its certificate is not trusted.
    """
    for name, value in (("poll", poll), ("time_limit", time_limit)):
        if not value > 0:
            raise ValueError(f"--{name} {value:g}: pass a number above 0")
    if not 0 <= health_port < 2**16:
        raise ValueError(f"--health_port {health_port}: pass a number from 0 to 65535")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--url {url}: begin it with http:// or https://")
    from breast_ultrasound.files import locked

    try:
        from tools.gateway import health, loop, orthanc, state, worker
    except ModuleNotFoundError as error:
        raise ValueError(f"the gateway needs {error.name}: pip install '.[gateway]'") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    loop.logger.setLevel(logging.INFO)
    os.umask(0o077)  # UIDs lead to patients
    with locked(output_dir, "gateway", "--output_dir"):
        kept = state.State(output_dir / "state.sqlite")
        if retry_failed:
            loop.logger.info(f"{loop.retry_failed(kept)} objects that had failed wait again")
        page = health.Health(health_address, health_port)
        server = orthanc.Orthanc(url, os.environ.get("ORTHANC_USER", ""), os.environ.get("ORTHANC_PASSWORD", ""))
        with suppress(orthanc.Away, orthanc.Fault, orthanc.Gone):  # wrong credentials need not wait for the network
            server.changes(0, 1)
        predicting = worker.Worker(
            time_limit, ckpt_dir=str(ckpt_dir), frames=frames, objects=objects, predict_refused=predict_refused
        )
        try:
            where = f"health at http://{health_address}:{health_port}/metrics" if health_port else "no health page"
            loop.logger.info(f"{url}, {output_dir}, {where}")
            loop.Gateway(server, predicting, kept, page, output_dir / "images.jsonl", poll).run()
        except sqlite3.DatabaseError as error:
            raise kept.damaged(error) from None
        finally:
            predicting.close()


if __name__ == "__main__":
    run(gateway)
