"""The gateway beside a real Orthanc: what comes back, what it leaves alone, and that nothing is lost or doubled.

`GATEWAY_KILLS=20` kills it twenty times in place of a few.
"""

import http.server
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import yaml
from orthanc_server import MISSING, PATIENCE_S, USER, Between, GatewayProcess, OrthancServer, wait_for
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from tools.dicom_files import BROKEN, picture, save, ultrasound
from tools.gateway.health import PREFIX, Health
from tools.gateway.loop import Gateway
from tools.gateway.orthanc import Away, Orthanc
from tools.gateway.state import State
from tools.gateway.worker import Crash, Worker

from breast_ultrasound.calibration import no_calibration
from breast_ultrasound.cli import checked
from breast_ultrasound.files import write_json
from breast_ultrasound.networks import BasicUNetClassifier, settings_of
from breast_ultrasound.weights import write_weights
from conftest import CLASS_NAMES, ROOT, SMALL, output_of

DEPLOY = ROOT / "deploy"
HOSPITAL = (ROOT / "docs" / "hospital.md").read_text(encoding="utf-8")
KILLS = int(os.environ.get("GATEWAY_KILLS", "5"))
WHOLE = {"mask_threshold": 0.0, "smallest_fraction": 0.0, "component_threshold": 0.0}  # each image is one lesion
ALL = {"SEG": 1, "SR": 1, "OT": 1}  # of an answered image
needs_orthanc = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder of a small network that has learned nothing, by whose calibration all it sees is unsure and suspicious."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = BasicUNetClassifier(features=SMALL["features"], downscale_factor=2, norm=("instance", {"affine": True}))
    settings = settings_of(network, class_names=CLASS_NAMES, image_size=SMALL["image_size"])
    write_weights(folder / "model.pt", network.state_dict(), settings)
    limits = {"malignancy_threshold": 0.0, "unsure_below": 1.0}
    write_json(folder / "calibration.json", no_calibration(str(folder / "model.pt")) | WHOLE | limits)
    return folder


@pytest.fixture
def orthanc(tmp_path):
    """A fresh Orthanc."""
    server = OrthancServer(tmp_path / "orthanc").start()
    yield server
    server.stop()


@pytest.fixture
def gateway(tmp_path, weights, orthanc):
    """A gateway beside it, not begun."""
    process = GatewayProcess(tmp_path / "gateway", orthanc.url, weights)
    yield process
    process.stop(signal.SIGKILL)


def grey(shift=0):
    """A picture that passes the input check."""
    rows, columns = np.mgrid[:120, :170].astype(float)
    speckle = np.random.default_rng(shift).rayleigh(0.8, (60, 85)).repeat(2, 0).repeat(2, 1)
    image = (150 - 0.7 * rows) * (0.6 + 0.4 * speckle) * (0.8 + 0.2 * np.sin((columns + shift) / 19))
    return np.asarray(image.clip(0, 255), np.uint8)


def image(name, study="study", **attributes):
    """An ultrasound object whose UIDs follow from its names."""
    pixels = attributes.pop("pixels", grey(zlib.crc32(name.encode()) % 1000))
    made = ultrasound(pixels, f"{study} {name}", **attributes)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        setattr(made, keyword, ultrasound(grey(), f"{study} {keyword}").SOPInstanceUID)
    return made


def files(folder, *names, study="study"):
    """Images as files, and their UIDs."""
    folder.mkdir(exist_ok=True)
    made = [image(name, study, InstanceNumber=number) for number, name in enumerate(names, 1)]
    return [save(m, folder / f"{n}.dcm") for m, n in zip(made, names)], [str(m.SOPInstanceUID) for m in made]


def content(made):
    """An object as a file holds it."""
    memory = io.BytesIO()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(memory, enforce_file_format=True)
    return memory.getvalue()


def metrics(process):
    """The health page as {(name, labels...): value}."""
    assert process.process.poll() is None, process.said()
    try:
        text = requests.get(f"http://127.0.0.1:{process.port}/metrics", timeout=5).text
    except requests.RequestException:
        return {}
    return {
        (sample.name.removeprefix("breast_ultrasound_gateway_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@needs_orthanc
@pytest.mark.slow
def test_what_a_scanner_sends_comes_back_answered_and_only_once(orthanc, gateway, weights, tmp_path):
    sent, uids = files(tmp_path / "sent", "a", "b")
    gateway.start()
    orthanc.send(*sent)
    assert gateway.wait_for_images(2) == dict.fromkeys(uids, "answered")
    assert orthanc.results() == dict.fromkeys(uids, ALL)
    (study,) = wait_for(lambda: gateway.lines()[1], "the study's line")
    lines = gateway.lines()[0]
    assert study["images"] == study["answered"] == study["suspicious"] == 2
    most = max(lines, key=lambda line: line["suspicion"])
    assert (study["most_suspicious"], study["suspicion"]) == (most["image"], most["suspicion"])
    assert {line["study"] for line in lines} == {study["study"]} == {str(dcmread(sent[0]).StudyInstanceUID)}
    assert all(line["stored"] == 3 and line["seconds"] > 0 and line["check"] == "ok" for line in lines), lines
    log = (gateway.folder / "out" / "images.jsonl").read_text() + gateway.said()
    assert "Petra" not in log and "P-1" not in log
    assert (gateway.folder / "out" / "images.jsonl").stat().st_mode & 0o077 == 0

    wait_for(lambda: metrics(gateway).get(("queue_objects",)) == 0, "its own results to be left alone")
    page = metrics(gateway)
    assert page["images_total", "answered"] == page["images_24h", "answered"] == 2
    assert page["orthanc_reachable",] == 1
    assert page["share_24h", "suspicious"] == page["share_24h", "unsure"] == 1 and page["share_24h", "refused"] == 0
    assert abs(page["last_image_timestamp_seconds",] - time.time()) < 600

    # The same as the command makes of the same file
    out = tmp_path / "predicted"
    predict = [sys.executable, "-m", "breast_ultrasound", "predict", sent[0], "--output_dir", out, "--dicom", "True"]
    output_of([*predict, "--ckpt_dir", weights], env=os.environ | {"PYTHONPATH": str(ROOT / "bundle")})
    for kind in ("seg", "sr", "sc"):
        made = dcmread(out / f"a_{kind}.dcm")
        (found,) = orthanc.session.post(
            f"{orthanc.url}/tools/find",
            json={"Level": "Instance", "Query": {"SOPInstanceUID": made.SOPInstanceUID}},
        ).json()
        stored = dcmread(io.BytesIO(orthanc.get(f"/instances/{found}/file")))
        assert stored == made, kind
    shown = Image.open(io.BytesIO(orthanc.get(f"/instances/{found}/preview")))
    assert np.array_equal(np.asarray(shown.convert("RGB")), made.pixel_array), "what Orthanc's own page shows"

    # The document's command removes what was stored, and nothing else.
    (command,) = re.findall(r"^curl .*$", HOSPITAL, re.MULTILINE)
    command = command.replace("http://127.0.0.1:8042", orthanc.url)
    output_of(["bash", "-euc", command], env=os.environ | USER)
    assert orthanc.results() == {} and orthanc.get("/statistics")["CountInstances"] == 2

    # Begun again, also without what it remembered, it stores nothing twice; a late image of the series is answered.
    for stored in (3, 0):
        assert gateway.stop() == 130
        shutil.rmtree(gateway.folder / "out")
        gateway.start()
        assert gateway.wait_for_images(2) == dict.fromkeys(uids, "answered")
        assert {(line["stored"], line["already_stored"]) for line in gateway.lines()[0]} == {(stored, 3 - stored)}
    late, more = files(tmp_path / "late", "c")
    orthanc.send(*late)
    assert set(gateway.wait_for_images(3)) == {*uids, *more}
    assert orthanc.results() == dict.fromkeys(uids + more, ALL)
    assert orthanc.get("/statistics")["CountInstances"] == 12


@needs_orthanc
@pytest.mark.slow
def test_what_is_broken_refused_or_of_another_kind_blocks_nothing(orthanc, gateway):
    good = [image("first"), image("last")]
    page = np.full((120, 170), 255, np.uint8)
    page[10:100:8, 20:150] = 0
    refused = {
        "page": (image("page", pixels=page), "white in"),
        "truncated": (BROKEN["truncated JPEG"][0](picture()), "cannot be decoded"),
        "Doppler": (BROKEN["colour Doppler"][0](picture()), "colour Doppler"),
        "other bits": (BROKEN["16 bits"][0](picture()), "1 x 12 bits"),
    }
    for name, (made, _) in refused.items():
        made.SOPInstanceUID = image(name).SOPInstanceUID
    cine = image("cine", pixels=np.stack([grey(number) for number in range(5)]), frames=5)
    others = [image("screenshot", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), image("tomogram", Modality="CT")]
    others += [image("own", Manufacturer="breast-ultrasound")]
    for number, made in enumerate(others):
        made.SeriesInstanceUID += f".{number}"
    lost = image("lost")
    for made in [good[0], cine, *others, *(made for made, _ in refused.values())]:
        orthanc.upload(content(made))
    uuid = orthanc.get(f"/instances/{orthanc.upload(content(lost))}")["FileUuid"]
    (orthanc.folder / "storage" / uuid[:2] / uuid[2:4] / uuid).unlink()  # as a failing disk does
    orthanc.upload(content(good[1]))
    orthanc.stop()  # which has the file in memory
    orthanc.start()
    gateway.start()
    found = gateway.wait_for_images(len(good) + len(refused) + 2)
    lines = {line["image"]: line for line in gateway.lines()[0]}
    for made in [*good, cine]:
        assert found[str(made.SOPInstanceUID)] == "answered"
    assert lines[str(cine.SOPInstanceUID)]["frame"] == 3, "the middle one"
    for name, (made, reason) in refused.items():
        line = lines[str(made.SOPInstanceUID)]
        assert line["outcome"] == "refused" and re.search(reason, line["reason"]) and line["stored"] == 0, (name, line)
    given_up = lines[str(lost.SOPInstanceUID)]
    assert given_up["outcome"] == "failed" and "Orthanc fails at GET" in given_up["reason"]
    assert gateway.said().count("attempt") == 3
    answered = {str(made.SOPInstanceUID) for made in [*good, cine]}
    assert set(found) == {*answered, *(str(m.SOPInstanceUID) for m, _ in refused.values()), str(lost.SOPInstanceUID)}
    assert set(orthanc.results()) - {""} >= answered
    page = wait_for(lambda: metrics(gateway), "the page")
    assert page["images_total", "failed"] == 1 and page["errors_total", "image"] == 3
    assert page["share_24h", "refused"] == pytest.approx(4 / 8)

    # What was given up is tried again when asked for
    gateway.stop()
    gateway.command += ["--retry_failed", "True"]
    gateway.start()
    wait_for(lambda: gateway.said().count("attempt") == 6, "a second round")
    assert "1 objects that had failed wait again" in gateway.said()


@needs_orthanc
@pytest.mark.slow
def test_killed_at_each_stage_it_loses_and_doubles_nothing(orthanc, gateway, weights, tmp_path):
    """Stages by what passes between the two; a kill happens before the gateway is told of Orthanc's answer."""
    stages = [("GET", "/changes"), ("GET", "/file"), ("POST", 1), ("POST", 2), ("POST", 3)]
    between = Between(orthanc.url)
    gateway.command[gateway.command.index("--url") + 1] = between.url
    sent, uids = files(tmp_path / "sent", *(f"image {number}" for number in range(max(3, KILLS // 2))))
    posts, killed = [0], []

    def after(method, path):
        if len(killed) == KILLS:
            return
        wanted_method, wanted = stages[len(killed) % len(stages)]
        posts[0] = posts[0] + 1 if method == "POST" else 0
        hit = posts[0] == wanted if wanted_method == "POST" else method == "GET" and wanted in path
        if hit and method == wanted_method:
            killed.append((method, wanted))
            gateway.process.kill()
            posts[0] = 0

    try:
        orthanc.send(*sent)
        between.after = after
        gateway.start()
        for number in range(KILLS):
            wait_for(lambda: len(killed) > number and gateway.process.poll() is not None, f"kill {number + 1}")
            assert gateway.process.returncode == -signal.SIGKILL
            gateway.start()
        assert gateway.wait_for_images(len(uids)) == dict.fromkeys(uids, "answered")
        wait_for(lambda: metrics(gateway).get(("queue_objects",)) == 0, "its own results to be left alone")
    finally:
        gateway.stop()
        between.close()
    assert set(killed) == set(stages[:KILLS]) and len(killed) == KILLS
    assert orthanc.results() == dict.fromkeys(uids, ALL)
    state = State(gateway.folder / "out" / "state.sqlite")
    assert state.queue_length() == 0 and state.last_day()["answered"] == len(uids)


@needs_orthanc
@pytest.mark.slow
def test_orthanc_may_be_away_at_the_start_and_in_between_and_be_killed(tmp_path, weights):
    server = OrthancServer(tmp_path / "orthanc")
    gateway = GatewayProcess(tmp_path / "gateway", server.url, weights).start()
    try:
        wait_for(lambda: "does not answer" in gateway.said(), "a line")
        page = wait_for(lambda: metrics(gateway), "the page")
        assert page["orthanc_reachable",] == 0 and page["errors_total", "orthanc"] >= 1
        server.start()
        first, uids = files(tmp_path / "first", "a")
        server.send(*first)
        assert gateway.wait_for_images(1) == dict.fromkeys(uids, "answered")
        # Killed before the series counts as complete, of which it says nothing when it is there again
        second, more = files(tmp_path / "second", "b")
        server.send(*second)
        server.stop(signal.SIGKILL)
        wait_for(lambda: gateway.said().count("does not answer") >= 2, "a second line")
        server.start()
        assert set(gateway.wait_for_images(2)) == {*uids, *more}
        assert server.results() == dict.fromkeys(uids + more, ALL)
        wait_for(lambda: metrics(gateway).get(("orthanc_reachable",)) == 1, "the page")
        assert "it works again" in gateway.said()
    finally:
        gateway.stop(signal.SIGKILL)
        server.stop()


@needs_orthanc
@pytest.mark.slow
def test_a_full_disk_is_told_and_waited_for(orthanc, gateway, tmp_path):
    between, full = Between(orthanc.url), [True]
    said = json.dumps({"Message": "Cannot write to file"}).encode()
    between.before = lambda method, path: (500, said) if full[0] and method == "POST" else None
    gateway.command[gateway.command.index("--url") + 1] = between.url
    try:
        sent, uids = files(tmp_path / "sent", "a")
        orthanc.send(*sent)
        (gateway.folder / "out").mkdir()
        State(gateway.folder / "out" / "state.sqlite").enqueue([], 1000)  # of an Orthanc that was there before
        gateway.start()
        wait_for(lambda: metrics(gateway).get(("errors_total", "orthanc"), 0) >= 3, "three attempts")
        assert gateway.said().count("Orthanc cannot write (500 Cannot write to file); make room on its disk") == 1
        assert gateway.lines() == ([], []) and metrics(gateway)["queue_objects",] == 1
        full[0] = False
        assert gateway.wait_for_images(1) == dict.fromkeys(uids, "answered")
        assert orthanc.results() == dict.fromkeys(uids, ALL)
    finally:
        gateway.stop()
        between.close()


@needs_orthanc
@pytest.mark.slow
def test_wrong_credentials_and_an_unknown_certificate_end_with_a_line(orthanc, gateway, tmp_path):
    gateway.variables["ORTHANC_PASSWORD"] = "wrong"
    gateway.start()
    assert gateway.process.wait(PATIENCE_S) == 1
    (line,) = [line for line in gateway.said().splitlines() if "gateway: " in line and "health" not in line]
    assert line == (
        f"gateway: {orthanc.url}: Orthanc refuses the credentials; set ORTHANC_USER and ORTHANC_PASSWORD to those of "
        "its RegisteredUsers"
    )
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", certificate, "-out", tmp_path / "own.pem"]
    output_of(command)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", certificate)
    server = http.server.HTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler)  # answers GET with 501
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    gateway.variables |= USER
    gateway.command[gateway.command.index("--url") + 1] = f"https://localhost:{server.server_port}"
    gateway.start()
    assert gateway.process.wait(PATIENCE_S) == 1
    assert "its certificate is not trusted (self-signed certificate); name its authority's file" in gateway.said()
    server.shutdown()


@needs_orthanc
@pytest.mark.slow
def test_two_gateways_share_no_folder_and_double_nothing(orthanc, gateway, weights, tmp_path):
    sent, uids = files(tmp_path / "sent", "a", "b", "c")
    others = [GatewayProcess(tmp_path / name, orthanc.url, weights) for name in ("second", "third")]
    command = others[1].command
    command[command.index("--output_dir") + 1] = gateway.command[gateway.command.index("--output_dir") + 1]
    try:
        gateway.start()
        wait_for(lambda: "health at" in gateway.said(), "the first")
        for other in others:
            other.start()
        assert others[1].process.wait(PATIENCE_S) == 1
        assert others[1].said().strip().endswith("another run writes there; wait for it, or pass another --output_dir")
        orthanc.send(*sent)
        for process in (gateway, others[0]):
            assert process.wait_for_images(3) == dict.fromkeys(uids, "answered")
        assert orthanc.results() == dict.fromkeys(uids, ALL)
    finally:
        for other in others:
            other.stop(signal.SIGKILL)


@pytest.mark.parametrize("status, said", [(404, b""), (200, b"{}"), (200, b"[]"), (200, b"<html>")])
def test_a_server_that_is_no_orthanc_is_named(status, said):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(Away, match=f":{server.server_port} answers, but not as an Orthanc does"):
            Orthanc(f"http://127.0.0.1:{server.server_port}").changes(0)
    finally:
        server.shutdown()
        server.server_close()


def test_what_waits_goes_in_turn_and_failures_go_behind(tmp_path):
    state = State(tmp_path / "state.sqlite")
    assert (state.since(), state.next()) == (0, None)
    state.enqueue(["a", "b"], 7)
    state.enqueue(["b", "c"], 9)  # b, as after a crash
    assert state.since() == 9 and state.queue_length() == 3
    first = state.next()
    state.await_series(first, "series", "S", 0)
    assert (first, state.next().instance) == (("a", 0), "b")
    state.postpone(state.next(), 1000, failed=True)
    row = {"frame": 0, "study": "1.2", "outcome": "answered", "suspicious": True, "unsure": False}
    state.finish(state.next(), "S", [row | {"image": "1.2.3", "suspicion": 0.25}])
    assert state.finished_studies() == [], "another of its objects waits"
    rows = [row | {"image": "1.2.4", "frame": 3, "suspicion": 0.75, "suspicious": False}]
    state.finish(state.next(), "S", rows + [row | {"image": "1.2.4", "frame": 4, "outcome": "refused"}])
    assert state.next() is None and state.queue_length() == 1, "b is not due"
    again = State(tmp_path / "state.sqlite")
    assert again.finished_studies() == ["S"] and again.since() == 9
    counts = {"images": 3, "answered": 2, "refused": 1, "failed": 0, "suspicious": 2, "unsure": 0}
    assert again.study("1.2") == counts | {"most_suspicious": "1.2.4", "frame": 3, "suspicion": 0.75}
    assert again.last_day() == counts
    again.close_study("S")
    assert again.finished_studies() == []


def test_no_room_for_what_is_remembered_or_told_is_no_images_fault(tmp_path):
    state = State(tmp_path / "state.sqlite")
    state.connection.execute(f"PRAGMA max_page_count = {state.connection.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(Away, match="state.sqlite: not written .database or disk is full.; make room"):
        state.enqueue([f"{number:044}" for number in range(1000)], 5)
    assert (state.since(), state.queue_length()) == (0, 0)
    with pytest.raises(Away, match="/dev/full: not written .No space left on device.; make room"):
        Gateway(None, None, state, None, Path("/dev/full"))._write({"image": "1.2"})
    (tmp_path / "other.sqlite").write_text("something else, and longer than a header of SQLite\n" * 20)
    with pytest.raises(ValueError, match="other.sqlite: not what .* remembers .file is not a database.; move it"):
        State(tmp_path / "other.sqlite")


def test_a_state_that_lost_a_page_is_told_before_anything_is_read(tmp_path):
    path = tmp_path / "state.sqlite"
    state = State(path)
    state.enqueue([f"{number:044}" for number in range(1000)], 1000)
    size = state.connection.execute("PRAGMA page_size").fetchone()[0]
    state.connection.close()
    whole = path.read_bytes()
    for page in range(1, len(whole) // size, 7):
        path.write_bytes(whole[: page * size] + b"\xff" * size + whole[(page + 1) * size :])
        with pytest.raises(ValueError, match="malformed.; move it away"):
            State(path)


@pytest.mark.slow
def test_a_prediction_that_takes_too_long_or_dies_costs_its_image_alone(weights):
    data = content(image("a"))
    settings = {"ckpt_dir": str(weights), "frames": "middle", "objects": ("sr",), "predict_refused": False}
    worker = Worker(PATIENCE_S, **settings)
    try:
        (answer,) = worker.answers(data)
        assert answer.refused == "" and len(answer.objects) == 1 and answer.values["suspicion"] > 0
        worker.time_limit = 0.0
        with pytest.raises(Crash, match="no answer within 0 s"):
            list(worker.answers(data))
        worker.time_limit = PATIENCE_S
        assert list(worker.answers(data)) == [answer], "the next one has a new process"
        worker.process.kill()
        worker.process.join()
        assert list(worker.answers(data)) == [answer]
        with pytest.raises(Crash, match=r"^AttributeError in worker.py, line \d+$"):
            worker._ask("no task of the child", None)
    finally:
        worker.close()
    with pytest.raises(ValueError, match="frames never: give all, middle"):
        Worker(PATIENCE_S, **settings | {"frames": "never"})


def instructions(stage):
    """The lines of a stage of the Containerfile as [(instruction, rest)]."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_the_steps_of_the_container_file_make_a_gateway_that_starts(tmp_path):
    """Run as a script, with the packages of this environment in place of those that it would download."""
    site = str(next(path for path in sys.path if path.endswith("site-packages")))
    environment = os.environ | {"PYTHONPATH": site, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (tmp_path / "python3").symlink_to(sys.executable)

    def placed(text):
        return re.sub(r"(?<![\w./])/(app|opt|data)\b", rf"{tmp_path}/\1", text)

    done = []
    for name, rest in instructions("gateway"):
        done.append(name)
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert f"!{source}\n" in (DEPLOY / "Containerfile.dockerignore").read_text(), source
            command = f"mkdir -p {placed(target)} && cp -r {' '.join(sources)} {placed(target)}"
            if (ROOT / sources[0]).is_dir():
                command = f"mkdir -p {tmp_path}/app && cp -r {' '.join(sources)} {placed(target)}"
            output_of(["bash", "-c", command], cwd=ROOT)
        elif name == "RUN" and not rest.startswith("apt-get"):
            line = placed(rest) if os.geteuid() == 0 else placed(rest).partition(" && chown")[0]
            output_of(["bash", "-euc", line], cwd=tmp_path, env=environment | {"PIP_OPTIONS": "--quiet"})
        elif name == "ENTRYPOINT":
            entry = [placed(text) for text in json.loads(rest)]
    assert done[-2:] == ["USER", "ENTRYPOINT"]
    assert dict(instructions("gateway"))["USER"] == dict(instructions("orthanc"))["USER"] == "10001:10001"
    help_text = output_of([*entry, "--help"], cwd=tmp_path, env=environment)
    assert "gateway: Run the gateway" in help_text and "--output_dir" in help_text
    refused = output_of([*entry, "--url", "x"], code=1, cwd=tmp_path, env=environment)
    assert refused.strip() == "gateway: --url x: begin it with http:// or https://"


def test_the_compose_file_keeps_its_promises():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        assert service["user"] == "10001:10001" and service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["build"]["target"] == name and (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "ORTHANC_PASSWORD:?" in service["environment"]["ORTHANC_PASSWORD"], "no password of its own"
        assert set(service["networks"]) <= set(compose["networks"])
        assert all(volume.split(":")[0] in compose["volumes"] for volume in service["volumes"])
    gateway = compose["services"]["gateway"]
    assert [compose["networks"][name] for name in gateway["networks"]] == [{"internal": True}]
    entry = json.loads(dict(instructions("gateway"))["ENTRYPOINT"])
    options = dict(zip((entry[2:] + gateway["command"])[::2], (entry[2:] + gateway["command"])[1::2]))
    checked(importlib.import_module("gateway").gateway, (), {name[2:]: value for name, value in options.items()})
    config = (DEPLOY / "orthanc.json").read_text(encoding="utf-8")
    given = {name for service in compose["services"].values() for name in service["environment"]}
    assert given <= set(re.findall(r"\$\{(ORTHANC_\w+)", config))


def test_the_commands_of_the_document_can_be_typed():
    found = re.findall(r"scripts/gateway\.py (--.*?)(?: &)?$", HOSPITAL, re.MULTILINE)
    assert found
    for line in found:
        words = shlex.split(line)
        checked(importlib.import_module("gateway").gateway, (), dict(zip([w[2:] for w in words[::2]], words[1::2])))
    config = (DEPLOY / "orthanc.json").read_text(encoding="utf-8")
    assert set(re.findall(r"ORTHANC_\w+", HOSPITAL)) <= set(re.findall(r"\$\{(ORTHANC_\w+)", config))
    told = set(
        re.findall(r"`(\w+?)(?:_total)?(?:\{.*?\})?`", HOSPITAL.split("| metric |")[1].split("*Switch off.*")[0])
    )
    made = {name.removeprefix(f"{PREFIX}_") for name in Health("", 0).registry._names_to_collectors}
    assert told <= made, told - made
