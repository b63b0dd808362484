"""label_app on MONAI Label's real server: answers, labels, training, the choice of the next image, closed doors."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from label_server import APP, HOLES, SHIM, bundle_answer, environment, png_bytes, same_answer, serve_app
from monai.bundle import ConfigParser
from PIL import Image, ImageDraw, PngImagePlugin

from breast_ultrasound.uncertainty import image_uncertainty
from conftest import CLASS_NAMES, ROOT
from lib.split import hold_out

MODEL = "breast_ultrasound"
ALL = ("normal", "benign", "malignant")


def digests(folder):
    """SHA-256 of every file below a folder; compiled Python is no part of a bundle."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and "__pycache__" not in f.parts]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def true_mask(prepared, name):
    """The true mask (height, width) of a phantom, as bool."""
    return np.asarray(Image.open(prepared / "labels" / f"{name}.png")) > 0


def lesions(prepared, kind):
    """Names of phantoms of a class whose mask fits the class."""
    names = sorted(f.stem for f in (prepared / "labels").glob(f"{kind} *.png"))
    return [name for name in names if true_mask(prepared, name).any() == (kind != "normal")]


def nrrd_bytes(volume):
    """A volume (W, H, 1), uint8, as an NRRD file such as 3D Slicer writes."""
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {' '.join(map(str, volume.shape))}\nencoding: gzip\n"
    return (header + "\n").encode() + gzip.compress(volume.tobytes(order="F"))


def nifti_bytes(volume):
    """A volume (W, H, 1), uint8, as .nii.gz in the frame of an image (left, posterior, superior)."""
    return gzip.compress(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])).to_bytes())


@pytest.fixture(scope="module")
def studies(tmp_path_factory, prepared):
    """Folder of phantoms, one of them as JPEG, and a file that is no image."""
    folder = tmp_path_factory.mktemp("app") / "studies"
    shutil.copytree(prepared / "images", folder)
    image = folder / lesions(prepared, "benign")[2]
    Image.open(f"{image}.png").save(f"{image}.Jpg", quality=95)
    os.remove(f"{image}.png")
    (folder / "a broken one.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def server(label_venv, studies, small_bundle):
    with serve_app(label_venv, studies, small_bundle, studies.parent / "server.log") as server:
        yield server


@pytest.mark.slow
class TestAnswers:
    def test_mask_and_class_are_those_of_the_bundles_own_command(self, server, studies, small_bundle, tmp_path):
        file = studies / "benign (1).png"
        expected = bundle_answer(small_bundle, file, tmp_path)
        assert same_answer(*server.infer(MODEL, "benign (1)"), expected)
        assert same_answer(*server.infer(MODEL, file=file), expected)

    def test_clients_get_the_mask_in_their_own_formats(self, server, tmp_path):
        mask, params = server.infer(MODEL, "benign (1)", polygons=True)
        assert set(np.unique(mask)) == {0, 255}
        mask = mask > 0
        options = {"params": {"image": "benign (1)", "output": "image"}}
        for extension in (".nii.gz", ".nrrd"):
            data = {"params": json.dumps({"result_extension": extension, "result_dtype": "uint8"})}
            content = server.request("POST", f"/infer/{MODEL}", data=data, **options).content
            if extension == ".nii.gz":
                volume = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)
            else:
                head, body = content.split(b"\n\n", 1)
                assert b"encoding: raw" in head and b"unsigned char" in head
                volume = np.frombuffer(body, np.uint8).reshape((*mask.shape[::-1], 1), order="F")
            assert np.array_equal(volume[..., 0].T, mask), extension
        drawn = Image.new("L", mask.shape[::-1])
        for element in params["annotations"][0]["annotation"]["elements"]:
            assert element["label"] == "lesion"
            for contour in element["contours"]:
                ImageDraw.Draw(drawn).polygon([tuple(point) for point in contour], fill=1, outline=1)
        # Parts of a few pixels get no polygon.
        assert (np.asarray(drawn) != mask).mean() < 0.01 and mask.any()

    def test_the_plugin_for_cvat_gets_its_polygons(self, server, studies, label_venv):
        code = (
            "import base64, json, logging, sys; from types import SimpleNamespace as Space; import detector\n"
            "context = Space(logger=logging, user_data=Space(), Response=lambda body, **_: body)\n"
            "detector.init_context(context)\n"
            "image = base64.b64encode(open(sys.argv[1], 'rb').read())\n"
            "print(detector.handler(context, Space(body={'image': image})))\n"
        )
        plugin = label_venv / "monailabel" / "plugins" / "cvat"
        variables = {"MONAI_LABEL_SERVER": server.url, "MONAI_LABEL_MODEL": MODEL, "no_proxy": "127.0.0.1"}
        done = subprocess.run(
            [label_venv / "bin" / "python", "-c", code, studies / "benign (1).png"],
            env=environment(label_venv, PYTHONPATH=os.pathsep.join(map(str, (plugin, SHIM))), **variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        mask = server.infer(MODEL, "benign (1)")[0] > 0
        drawn = Image.new("L", mask.shape[::-1])
        for shape in json.loads(done.stdout.splitlines()[-1]):
            assert shape["type"] == "polygon" and shape["label"] == "lesion"
            ImageDraw.Draw(drawn).polygon(shape["points"], fill=1, outline=1)
        # The plugin sends a JPEG
        assert (np.asarray(drawn) != mask).mean() < 0.02 and mask.any()

    def test_a_jpeg_gets_a_png(self, server, studies):
        (file,) = studies.glob("*.Jpg")
        mask, _ = server.infer(MODEL, file.stem)
        assert set(np.unique(mask)) <= {0, 255} and mask.shape == Image.open(file).size[::-1]

    @pytest.mark.parametrize(
        "path, query, params, status, message",
        [
            (MODEL, "nobody", {}, 404, "image 'nobody' is unknown"),
            (MODEL, "a broken one", {}, 422, "a broken one.png: not a readable image"),
            ("other", "benign (1)", {}, 404, "model 'other' is unknown; use breast_ultrasound"),
            (MODEL, "benign (1)", {"result_extension": ".jpg"}, 400, "'.jpg' is not served; use .png"),
            (MODEL, "benign (1)", {"device": "tpu"}, 400, "device 'tpu' is unknown"),
            (MODEL, "benign (1)", None, 400, "params is not a JSON object"),
            (MODEL, "benign (1)", [["image", "x"]], 400, "params is not a JSON object"),
            (MODEL, "benign (1)", {"image": ["x"]}, 404, "is unknown"),
            (MODEL, "", {}, 400, "no image: name one with image=ID or send a file"),
            (MODEL, "benign (1)", {"save_label": True, "label_tag": "final"}, 400, "is for labels of a person"),
        ],
    )
    def test_mistakes_are_named(self, server, path, query, params, status, message):
        data = {"params": json.dumps(params)}
        answer = server.request("POST", f"/infer/{path}", status, params={"image": query}, data=data).json()
        assert message in answer["detail"]

    def test_other_mistakes_are_named(self, server, tmp_path):
        for method, path, status, message in (
            ("POST", "/activelearning/oracle", 404, "use uncertainty, random, first, disagreement"),
            ("POST", "/train/other", 404, "model 'other' is unknown"),
            ("POST", "/batch/infer/other", 404, "model 'other' is unknown"),
            ("POST", "/scoring/other", 404, "method 'other' is unknown; use uncertainty"),
            ("GET", "/datastore/dataset", 404, "no label yet"),
            ("POST", f"/infer/{MODEL}?image=benign%20(1)&output=dicom_seg", 400, "use image, json or all"),
            ("GET", "/datastore/label?label=x&tag=final", 404, "Label NOT Found"),
        ):
            assert message in server.request(method, path, status).json()["detail"]
        options = {"json": {"label_tag": "final"}}
        answer = server.request("POST", f"/batch/infer/{MODEL}", 400, **options).json()
        assert "is for labels of a person" in answer["detail"]
        sent = server.request("POST", f"/infer/{MODEL}", 422, files={"file": ("x.png", b"no image")}).json()
        assert "the file sent is not a readable image" in sent["detail"]
        image = f"/infer/{MODEL}?image=benign%20(1)"
        answer = server.request("POST", image, 400, data={"params": "{class"}).json()
        assert "params is not valid JSON" in answer["detail"]
        answer = server.request("POST", image, 422, files={"params": ("p.json", b"{}")}).json()
        assert "params: Input should be a valid string" in answer["detail"]
        server.request("POST", image, 400, data=b"x", headers={"Content-Type": "multipart/form-data"})
        answer = server.request("POST", f"/train/{MODEL}", 422, data=b"\xff").json()
        assert answer["detail"] == "body: Input should be a valid dictionary"
        options = {"json": {"label_tag": "../x"}}
        answer = server.request("POST", f"/batch/infer/{MODEL}", 400, **options).json()
        assert "tag '../x' is not valid" in answer["detail"]

    @pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.__name__)
    def test_the_holes_of_the_plain_server_are_closed(self, server, studies, prepared, hole):
        name = lesions(prepared, "benign")[-1]
        hole(server, name, true_mask(prepared, name), studies)

    def test_the_folders_are_as_they_were(self, server, studies):
        assert not list((studies / "labels").rglob("*.png"))


@pytest.mark.slow
class TestChoice:
    """Runs before there is any label."""

    def test_the_image_that_the_model_finds_hardest_comes_first(self, server, studies, small_bundle):
        server.request("POST", "/scoring/uncertainty")
        assert server.wait_for("scoring")["status"] == "DONE"
        answer = server.request("POST", "/activelearning/uncertainty", json={}).json()
        config = ConfigParser(ConfigParser.load_config_file(small_bundle / "configs" / "inference.json"))
        config["bundle_root"] = str(small_bundle)
        network = config.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(small_bundle / "models" / "model.pt", weights_only=True))
        scores = {}
        for file in studies.glob("* (*).*"):
            image = config.get_parsed_content("preprocessing")({"image": str(file)})["image"]
            scores[file.stem] = float(image_uncertainty(network, image.as_tensor()[None]))
        assert len(scores) == 23 and len({round(score, 6) for score in scores.values()}) > 12
        assert answer["uncertainty"] == pytest.approx(max(scores.values()), abs=0.02)
        assert scores[answer["id"]] == pytest.approx(answer["uncertainty"], abs=0.02)

    def test_a_broken_file_is_passed_by_and_named(self, server):
        # "a broken one" is the first by name.
        answer = server.request("POST", "/activelearning/first", json={}).json()
        assert answer["id"] == "benign (1)" and "a broken one.png: not a readable image" in answer["left_out"][0]

    def test_scoring_runs_with_default_parameters(self, server, studies):
        server.request("POST", "/scoring/uncertainty")
        task = server.wait_for("scoring")
        assert task["status"] == "DONE", task
        scores = json.loads((studies / "models" / "uncertainty.json").read_text())["scores"]
        assert len(scores) == 23 and all(0 <= score <= 1 for score in scores.values())

    def test_batch_inference_runs_with_default_parameters(self, server, studies):
        server.request("POST", f"/batch/infer/{MODEL}")
        task = server.wait_for("batch/infer")
        assert task["status"] == "DONE" and any(
            "23 images done, 1 left out: a broken one" in x for x in task["details"]
        )
        status = server.request("GET", "/datastore/").json()
        assert status["label_tags"] == {"original": 23} and status["completed"] == 0
        mask, params = server.infer(MODEL, "benign (1)")
        kept = np.asarray(Image.open(studies / "labels" / "original" / "benign (1).png"))
        assert np.array_equal(kept > 0, mask > 0)
        info = server.request("GET", "/datastore/label/info?label=benign (1)&tag=original").json()
        assert info["class"] == params["class"]


@pytest.mark.slow
class TestLabels:
    def info(self, server, name):
        return server.request("GET", "/datastore/label/info", params={"label": name, "tag": "final"}).json()

    def test_labels_of_every_client_become_the_same_png(self, server, studies, prepared):
        name = lesions(prepared, "benign")[0]
        mask = true_mask(prepared, name)
        volume = mask.T[..., None].astype(np.uint8)
        for file, content in (
            ("x.png", png_bytes(mask)),
            ("x.nii.gz", nifti_bytes(volume)),
            ("x.nrrd", nrrd_bytes(volume * 2)),
        ):
            answer = server.save_label(name, content, name=file, **{"class": "Benign"})
            assert answer["class"] == "benign" and "warning" not in answer
            kept = Image.open(studies / "labels" / "final" / f"{name}.png")
            assert kept.mode == "L" and np.array_equal(np.asarray(kept), mask * np.uint8(255)), file
            downloaded = server.request("GET", "/datastore/label", params={"label": name, "tag": "final"}).content
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(downloaded))) > 0, mask)
        assert [f.name for f in (studies / "labels" / "final").iterdir()] == [f"{name}.png"]
        with zipfile.ZipFile(io.BytesIO(server.request("GET", "/datastore/dataset").content)) as archive:
            assert set(archive.namelist()) == {f"image/{name}.png", f"label/{name}.png", "metadata.json"}

    def test_a_suggestion_can_be_painted_on(self, server, studies):
        suggested, _ = server.infer(MODEL, "benign (7)")
        painted = suggested.copy()
        painted[:20, :30] = 255
        buffer = io.BytesIO()
        Image.fromarray(painted).save(buffer, "png")
        server.save_label("benign (7)", buffer.getvalue(), **{"class": "benign"})
        kept = np.asarray(Image.open(studies / "labels" / "final" / "benign (7).png")) > 0
        assert suggested.any() and np.array_equal(kept, painted > 0) and kept[:20, :30].all()
        server.request("DELETE", "/datastore/label", params={"id": "benign (7)", "tag": "final"})

    def test_what_contradicts_itself_is_refused_and_changes_nothing(self, server, studies, prepared):
        name, empty = lesions(prepared, "benign")[0], np.zeros_like(true_mask(prepared, lesions(prepared, "benign")[0]))
        before = digests(studies / "labels"), self.info(server, name)
        mask = true_mask(prepared, name)
        for content, given, message in (
            (mask, "normal", "normal with a mask: class and mask contradict"),
            (empty, "malignant", "malignant without a mask: class and mask contradict"),
            (mask, "birads 3", "class 'birads 3' is unknown; use normal, benign, malignant"),
            (mask[:-1], "benign", "send its own size"),
            (b"no image", "benign", "the label cannot be read"),
            (np.zeros((0,)).tobytes(), "benign", "the label cannot be read"),
        ):
            assert message in server.save_label(name, content, code=422, **{"class": given})["detail"]
        mixed = mask.astype(np.uint8)
        mixed[0, :9] = (64, 128, 192, 255, 255, 255, 192, 128, 64)  # a soft white brush on a mask of 0 and 1
        buffer = io.BytesIO()
        Image.fromarray(mixed).save(buffer, "png")
        answer = server.save_label(name, buffer.getvalue(), 422, **{"class": "benign"})
        assert "several greys (0, 1, 64, 128, 192, ...)" in answer["detail"]
        answer = server.save_label(name, mask, 400, raw_params='["x"]')
        assert "params is not a JSON object" in answer["detail"]
        volume = np.zeros((*mask.T.shape, 2), np.uint8)
        assert "send one slice" in server.save_label(name, nifti_bytes(volume), 422, "x.nii.gz")["detail"]
        assert "is unknown" in server.save_label("nobody", mask, 404, **{"class": "benign"})["detail"]
        assert (digests(studies / "labels"), self.info(server, name)) == before

    def test_a_class_can_be_given_later(self, server, prepared):
        name = lesions(prepared, "malignant")[0]
        answer = server.save_label(name, true_mask(prepared, name))
        assert answer["warning"].startswith("no class: the mask is learnt, the class is not")
        path = f"/datastore/label/info?label={name}&tag=final"
        for given, status in (("normal", 422), ("malignant", 200)):
            server.request("PUT", path, status, data={"info": json.dumps({"class": given})})
        info = self.info(server, name)
        assert info["class"] == "malignant" and "warning" not in info

    def test_a_label_put_there_by_hand_becomes_png_with_its_class(self, server, studies, prepared):
        name, folder = lesions(prepared, "malignant")[1], studies / "labels" / "final"
        Image.open(prepared / "labels" / f"{name}.png").save(folder / f"{name}.bmp")
        path = f"/datastore/label/info?label={name}&tag=final"
        server.request("PUT", path, data={"info": json.dumps({"class": "malignant"})})
        assert not (folder / f"{name}.bmp").exists() and self.info(server, name)["class"] == "malignant"
        kept = Image.open(folder / f"{name}.png")
        assert "malignant" in kept.info["label_info"]
        assert np.array_equal(np.asarray(kept) > 0, true_mask(prepared, name))
        answer = server.request("PUT", path, 400, data={"info": '["x"]'}).json()
        assert "info is not a JSON object" in answer["detail"]

    def test_a_jpeg_put_there_by_hand_is_read_and_gives_way(self, server, studies, prepared):
        name, folder = lesions(prepared, "malignant")[1], studies / "labels" / "final"
        server.request("DELETE", "/datastore/label", params={"id": name, "tag": "final"})
        square = np.zeros_like(true_mask(prepared, name))
        square[8:48, 16:64] = True
        Image.fromarray(square * np.uint8(255)).save(folder / f"{name}.JPG", quality=90)
        server.request("PUT", f"/datastore/label/info?label={name}&tag=final", data={"info": "{}"})
        assert np.array_equal(np.asarray(Image.open(folder / f"{name}.png")) > 0, square)
        assert not (folder / f"{name}.JPG").exists()

    def test_images_can_be_added_but_only_to_the_folder(self, server, studies):
        content = (studies / "benign (1).png").read_bytes()
        for name, status in (("new one", 200), ("new one", 409), ("../new", 400)):
            server.request("PUT", f"/datastore/image?image={name}", status, files={"file": ("x.png", content)})
        assert (studies / "new one.png").read_bytes() == content and not (studies.parent / "new.png").exists()
        assert server.infer(MODEL, "new one")[0].any()
        server.request("DELETE", "/datastore/image?id=new one")
        assert not (studies / "new one.png").exists()


@pytest.mark.slow
class TestTraining:
    """From one label up; runs after TestLabels, whose labels are taken away first."""

    def train(self, server, **options):
        server.request("POST", f"/train/{MODEL}", json=options)
        task = server.wait_for("train")
        return task, server.request("GET", "/info/").json()["train_stats"][MODEL] if task["status"] == "DONE" else None

    def test_without_a_label_there_is_a_clear_message(self, server):
        for name, entry in server.request("GET", "/datastore/?output=all").json()["objects"].items():
            if "final" in entry["labels"]:
                server.request("DELETE", "/datastore/label", params={"id": name, "tag": "final"})
        answer = server.request("POST", f"/train/{MODEL}", 400, json={}).json()
        assert "no label to learn from; submit one or more" in answer["detail"]

    def test_one_label_trains_but_nothing_serves_that_was_not_compared(self, server, studies, prepared):
        name = lesions(prepared, "benign")[0]
        server.save_label(name, true_mask(prepared, name), **{"class": "benign"})
        by_hand = studies / "labels" / "final" / f"{lesions(prepared, 'benign')[1]}.png"
        Image.new("L", (5, 5)).save(by_hand)
        task, entry = self.train(server, max_epochs=1)
        by_hand.unlink()
        assert entry["training"] == [name], task
        log = (studies.parent / "server.log").read_text()
        assert f"left out: label of {by_hand.stem}: the label has 5 x 5 pixels" in log
        assert entry and not entry["promoted"] and "no label to compare on" in entry["outcome"], task
        assert (studies / "models" / entry["model"]).is_file() and not (studies / "models" / "model.pt").exists()

    def test_a_good_training_serves_and_keeps_what_served(self, server, studies, prepared, small_bundle):
        shipped = digests(small_bundle)
        for kind in ALL:
            for name in lesions(prepared, kind)[:4]:
                server.save_label(name, true_mask(prepared, name), **({"class": kind} if name[-2] != "4" else {}))
        poor = torch.load(small_bundle / "models" / "model.pt", weights_only=True)
        torch.save({name: torch.zeros_like(value) for name, value in poor.items()}, studies / "models" / "model.pt")
        poor = digests(studies / "models")["model.pt"]
        task, entry = self.train(server, max_epochs=30, learning_rate=0.01, batch_size=4, pretrained=False)
        assert entry and entry["promoted"] and entry["score_after"] >= entry["score_before"], task
        assert len(entry["held_out"]) == 2 and len(entry["training"]) == 10
        models = {f.name for f in (studies / "models").iterdir()}
        assert {"model.pt", "history.json", f"model_{poor[:8]}.pt", entry["model"]} <= models
        assert (studies / "models" / "model.pt").read_bytes() == (studies / "models" / entry["model"]).read_bytes()
        assert digests(small_bundle) == shipped
        log = (studies.parent / "server.log").read_text()
        known = sum(name[-2] != "4" for name in entry["training"])
        assert known < 10 and f"10 labels train ({known} with class), 2 are held out" in log and "Epoch: 30/30" in log
        assert server.request("GET", "/info/").json()["train_stats"][MODEL]["model"] == entry["model"]
        served = torch.load(io.BytesIO(server.request("GET", f"/model/{MODEL}").content), weights_only=True)
        new = torch.load(studies / "models" / entry["model"], weights_only=True)
        assert all(torch.equal(served[name], new[name]) for name in new)

    def test_a_bad_training_does_not_serve(self, server, studies, small_bundle):
        for name in ("model.pt", "model.json"):  # weights that know phantoms serve
            shutil.copyfile(small_bundle / "models" / name, studies / "models" / name)
        before = (studies / "models" / "model.pt").read_bytes()
        held_out = server.request("GET", "/info/").json()["train_stats"][MODEL]["held_out"]
        task, entry = self.train(server, max_epochs=1, learning_rate=1e-6, pretrained=False)  # from nothing, and no way
        assert entry and not entry["promoted"] and entry["score_after"] < entry["score_before"], task
        assert entry["held_out"] == held_out and "not in use" in entry["outcome"]
        assert (studies / "models" / "model.pt").read_bytes() == before
        assert (studies / "models" / entry["model"]).is_file()

    def test_a_failed_training_says_why(self, server, studies):
        serving = studies / "models" / "model.pt"
        content = serving.read_bytes()
        serving.write_bytes(b"no weights")
        try:
            task, _ = self.train(server, max_epochs=1)
        finally:
            serving.write_bytes(content)
        reason = "the training failed: ValueError: "
        assert task["status"] == "ERROR" and any(reason in x and "model.pt" in x for x in task["details"]), task

    def test_wrong_options_end_with_a_clear_line(self, server):
        for options, message in (
            ({"max_epochs": 0}, "max_epochs: Input should be greater than or equal to 1"),
            ({"max_epochs": 10**9}, "max_epochs: Input should be less than or equal to 1000"),
            ({"max_epochs": True}, "max_epochs: Input should be a valid integer"),
            ({"pretrained": "false"}, "pretrained: Input should be a valid boolean"),
            ({"val_split": 1}, "val_split: Input should be less than 1"),
            ({"learning_rate": "fast"}, "learning_rate: Input should be a valid number"),
        ):
            answer = server.request("POST", f"/train/{MODEL}", 422, json=options).json()
            assert message in answer["detail"]
        answer = server.request("POST", f"/train/{MODEL}", 400, json={"max_epoch": 5}).json()
        assert "unknown option 'max_epoch'; use max_epochs, val_split" in answer["detail"]

    def test_stopping_a_training_leaves_the_serving_model_whole(self, server, studies):
        before = (studies / "models" / "model.pt").read_bytes()
        server.request("POST", f"/train/{MODEL}", json={"max_epochs": 1000})
        end = time.time() + 120
        while not any("Epoch: " in line for line in server.request("GET", "/train/").json().get("details", [])):
            assert time.time() < end
            time.sleep(0.3)
        server.request("DELETE", "/train/")
        assert server.wait_for("train")["status"] == "STOPPED"
        assert (studies / "models" / "model.pt").read_bytes() == before
        assert server.infer(MODEL, "benign (1)")[1]["class"] in CLASS_NAMES
        task, entry = self.train(server, max_epochs=1, pretrained=False)
        assert entry and not (studies / "models" / ".training").exists(), task


@pytest.mark.slow
class TestLater:
    def test_labels_and_models_are_there_after_a_kill(self, label_venv, small_bundle, prepared, tmp_path):
        folder = tmp_path / "studies of mine"  # MONAI Label's own command fails with a space
        folder.mkdir()
        names = [lesions(prepared, kind)[0] for kind in ALL]
        for name in names:
            shutil.copy(prepared / "images" / f"{name}.png", folder)
        with serve_app(label_venv, folder, small_bundle, tmp_path / "server.log") as server:
            server.save_label(names[0], true_mask(prepared, names[0]), **{"class": ALL[0]})
            state = (folder / "datastore_v2.json").read_bytes()
            for name, kind in zip(names[1:], ALL[1:]):
                server.save_label(name, true_mask(prepared, name), **{"class": kind})
            os.kill(server.process.pid, signal.SIGKILL)
        # As after a crash between the two files of a save
        (folder / "datastore_v2.json").write_bytes(state)
        (folder / "labels" / "final" / f".{names[0]}.1.partial.png").write_bytes(b"half")
        (folder / "labels" / "final" / "by hand.nii.gz").write_bytes(b"")
        shutil.copy(folder / f"{names[0]}.png", folder / f"{names[0]}_mask.png")
        options = ["--names", "labels.example.org", "--host", "127.0.0.2"]
        with serve_app(label_venv, folder, small_bundle, tmp_path / "server.log", *options) as server:
            proxied = {"Host": "labels.example.org", "Origin": "https://labels.example.org"}
            info = server.request("GET", "/info/", headers=proxied).json()
            assert info["datastore"]["completed"] == 3
            log = (tmp_path / "server.log").read_text()
            assert "left out: labels/final/by hand.nii.gz: not an image (.gz)" in log
            (line,) = [line for line in log.splitlines() if f"left out: {names[0]}_mask.png" in line]
            assert "mask of another image by its name; 1 such files" in line and "ERROR" not in line
            assert "3 images, 2 files left out" in log
            sent = {"file": ("x.png", (folder / f"{names[1]}.png").read_bytes())}
            path = f"/datastore/image?image={names[1]}_seg"
            refused = server.request("PUT", path, 422, headers=proxied, files=sent).json()["detail"]
            assert f"{names[1]}_seg.png is a mask of another image by its name" in refused
            for name, kind in zip(names, ALL):
                path = f"/datastore/label/info?label={name}&tag=final"
                assert server.request("GET", path).json()["class"] == kind
                kept = np.asarray(Image.open(folder / "labels" / "final" / f"{name}.png"))
                assert np.array_equal(kept > 0, true_mask(prepared, name))

    def test_a_second_server_is_refused_and_the_next_one_tells_what_the_first_left(
        self, label_venv, small_bundle, prepared, tmp_path
    ):
        folder, log = tmp_path / "studies", tmp_path / "server.log"
        shutil.copytree(prepared / "images", folder)
        name = lesions(prepared, "benign")[0]
        (folder / f"{'x' * 230}.png").write_bytes((folder / f"{name}.png").read_bytes())
        shutil.copy(folder / f"{name}.png", os.fsencode(folder) + b"/latin\xe9.png")
        label = folder / "labels" / "final" / f"{name}.png"
        label.parent.mkdir(parents=True)
        text = PngImagePlugin.PngInfo()
        text.add_text("label_info", json.dumps({"class": "benign", "warning": "no class: the mask is learnt"}))
        Image.open(prepared / "labels" / f"{name}.png").save(label, pnginfo=text)
        info = f"/datastore/label/info?label={name}&tag=final"
        with serve_app(label_venv, folder, small_bundle, log) as server:
            start = time.time()
            server.infer(MODEL, name)
            first = time.time() - start
            later = []
            for _ in range(5):
                start = time.time()
                server.infer(MODEL, name)
                later.append(time.time() - start)
            assert first < 3 * max(later)  # the libraries alone take 2 to 5 seconds
            assert f"Open {server.url}/annotate/ " in log.read_text().splitlines()[-1]
            named = log.read_text()
            assert "xxx.png: the name has 234 bytes" in named and "ce9.png: the name is not UTF-8" in named
            # Labels of version 0.3.1 have a warning in their text
            kept = server.request("GET", info).json()
            assert kept["class"] == "benign" and "warning" not in kept
            command = [label_venv / "bin" / "python", APP / "start.py", "--studies", folder, "--bundle", small_bundle]
            done = subprocess.run(command, capture_output=True, text=True, env=environment(label_venv), cwd=ROOT)
            line = f"start: {folder}: another server works on this folder; use that one, or end it first\n"
            assert done.returncode == 1 and done.stderr == line and not done.stdout
            server.request("POST", f"/train/{MODEL}", json={"max_epochs": 1000})
            os.kill(server.process.pid, signal.SIGKILL)
        with serve_app(label_venv, folder, small_bundle, log) as server:
            task = server.request("GET", "/train/").json()
            assert task["status"] == "ERROR" and task["details"][0].startswith("cut off: the server ended before")
            server.request("POST", f"/train/{MODEL}", json={"max_epochs": 1})
            assert server.wait_for("train")["status"] == "DONE"
        with serve_app(label_venv, folder, small_bundle, log) as server:
            assert "No Train Tasks Found" in server.request("GET", "/train/", 404).json()["detail"]

    def test_two_processes_do_not_lose_each_others_labels(self, label_venv, prepared, small_bundle, tmp_path):
        folder = tmp_path / "studies"
        shutil.copytree(prepared / "images", folder)
        code = (
            "import sys; from lib.datastore import ImageDatastore\n"
            "folder, labels, names = sys.argv[1], sys.argv[2], sys.argv[3:]\n"
            "store = ImageDatastore(folder, ['normal', 'benign', 'malignant'])\n"
            "for name in names:\n"
            "    store.save_label(name, f'{labels}/{name}.png', 'final', {'class': name.split()[0]})\n"
            "    store.update_image_info(name, {'seen': True})\n"
        )
        names = [name for kind in ALL for name in lesions(prepared, kind)]
        env = environment(label_venv, PYTHONPATH=os.pathsep.join(map(str, (APP, small_bundle, SHIM))))
        command = [label_venv / "bin" / "python", "-c", code, folder, prepared / "labels"]
        running = [subprocess.Popen([*map(str, command), *names[k::2]], env=env, cwd=tmp_path) for k in (0, 1)]
        assert [process.wait(120) for process in running] == [0, 0]
        state = json.loads((folder / "datastore_v2.json").read_text())["objects"]
        for name in names:
            assert state[name]["labels"]["final"]["info"]["class"] == name.split()[0]
            assert state[name]["image"]["info"]["seen"]


@pytest.mark.slow
def test_how_far_a_training_is_outlives_a_flood_of_other_lines(label_venv, small_bundle, tmp_path):
    code = (
        "import logging; from monailabel.utils.async_tasks.utils import background_processes\n"
        "from lib.progress import PROGRESS\n"
        "log = logging.getLogger('task_train'); log.setLevel(logging.INFO)\n"
        "background_processes['train'] = {'first': None}\n"
        "for line in ['Epoch: 3/4, loss 0.5', *['a warning'] * 50, 'Epoch: 1/4']: log.info(line)\n"
        "for line in ['[ERROR] (main:9) - the training failed: ValueError: why', *['bye'] * 30]: log.info(line)\n"
        "background_processes['train'] = {'second': None}\n"
        "log.info('begins')\n"
        "print([(PROGRESS.done(task), PROGRESS.failed(task)) for task in ('first', 'second')])\n"
    )
    env = environment(label_venv, PYTHONPATH=os.pathsep.join(map(str, (APP, small_bundle, SHIM))))
    command = [label_venv / "bin" / "python", "-c", code]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout == "[(0.75, 'ValueError: why'), (0.0, '')]\n", done.stderr


@pytest.mark.slow
def test_a_set_without_a_class_called_normal_may_have_images_without_a_lesion(label_venv, small_bundle, tmp_path):
    code = (
        "import numpy as np; from lib.labels import check_class\n"
        "empty = np.zeros((4, 5), bool)\n"
        "print(check_class({'class': 'birads 2'}, empty, ['birads 2', 'birads 4']))\n"
        "check_class({'class': 'benign'}, empty, ['normal', 'benign'])\n"
    )
    env = environment(label_venv, PYTHONPATH=os.pathsep.join(map(str, (APP, small_bundle, SHIM))))
    command = [label_venv / "bin" / "python", "-c", code]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout == "{'class': 'birads 2'}\n"
    assert "benign without a mask: class and mask contradict each other; correct one of them" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--studies is missing"),
        (["--studies", "nowhere"], "nowhere: no such folder"),
        (["--studies", ".", "--bundle", "docs"], "model.pt: missing; train the bundle first"),
        (["--studies", ".", "--port", "http"], "--port http: should be a valid integer"),
        (["--study", "."], "unknown option --study; did you mean --studies?"),
        (["--studies", ".", "--port", "65536"], "--port is 65536; use a number from 1 to 65535, or 0"),
    ],
)
def test_a_wrong_start_ends_with_one_line(label_venv, options, message):
    command = [label_venv / "bin" / "python", APP / "start.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(label_venv))
    assert done.returncode != 0 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_folder_of_dicom_alone_is_told_what_to_do(label_venv, tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    command = [label_venv / "bin" / "python", APP / "start.py", "--studies", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(label_venv))
    assert done.returncode == 1 and "DICOM alone; make PNGs" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_port_is_taken_before_all_is_loaded_and_one_that_is_taken_is_told(label_venv, small_bundle, tmp_path):
    command = [label_venv / "bin" / "python", APP / "start.py", "--studies", tmp_path, "--bundle", small_bundle]
    options = {"cwd": ROOT, "env": environment(label_venv), "text": True}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run([*map(str, command), "--port", str(port)], capture_output=True, **options)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"start: --host 127.0.0.1 --port {port}: Address already in use; use another port\n"
    starting = subprocess.Popen([*map(str, command), "--port", str(port)], stdout=subprocess.PIPE, **options)
    try:
        assert starting.stdout.readline().endswith("Starting ...\n")
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
    finally:
        starting.kill()
        starting.communicate()


@pytest.mark.parametrize(
    "host, names, allowed",
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("10.0.0.5", "labels.example.org", "10.0.0.5,labels.example.org"),
        ("0.0.0.0", "", ""),
    ],
)
def test_the_start_allows_its_own_address_and_keeps_calls_to_itself_from_proxies(
    host, names, allowed, small_bundle, tmp_path, monkeypatch
):
    spec = importlib.util.spec_from_file_location("start", APP / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    passed = {}
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(start, "take_address", lambda host, port: listening)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # MONAI Label is in another environment
    monkeypatch.setattr(start, "serve", lambda command, variables, listening: passed.update(variables))
    monkeypatch.setenv("no_proxy", "intranet")
    start.start(tmp_path, 8000, small_bundle, host, names)
    listening.close()
    assert passed["LABEL_APP_HOSTS"] == allowed
    assert passed["no_proxy"] == "intranet,127.0.0.1,localhost"


def test_the_documents_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace('"$(LABEL_RUN)"', ".venv-label/bin/python")
    document = (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8")
    plain = [line for line in document.splitlines() if line.startswith(".venv-label/bin/python ")]
    assert len(plain) == 3
    for line in plain:
        assert f"\t{line.split(' images')[0]}" in makefile.replace('"$(STUDIES)"', "images")
    assert "\nannotate: " in makefile and "make annotate STUDIES=" in document


def test_both_environments_have_the_same_versions():
    def pins(name):
        lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        return {line.split("==")[0].split("[")[0].lower(): line.split("==")[1] for line in lines}

    own, label = pins("requirements.txt"), pins("requirements-label.txt")
    common = own.keys() & label.keys() - {"pydicom"}  # MONAI Label cannot start with 3, colours are wrong with 2
    assert len(common) > 10 and all(own[name] == label[name] for name in common)
    assert pins("requirements-label-no-deps.txt")["monailabel"] == "0.8.5"


def test_labels_held_out_stay_so_and_never_trained_what_serves():
    names = [f"image {number}" for number in range(20)]
    assert hold_out(names[:1], 0.2, []) == []
    first = hold_out(names[:2], 0.2, [])
    assert len(first) == 1
    assert hold_out(names[:10], 0.2, []) == hold_out(names[:10][::-1], 0.2, [])
    held = hold_out(names[:10], 0.2, [])
    training = [name for name in names[:10] if name not in held]
    history = [{"training": training, "held_out": held, "promoted": True}]
    later = hold_out(names, 0.2, history)
    assert len(later) == 4 and set(held) < set(later) and not set(later) & set(training)
    assert hold_out(names, 0.1, [*history, {"training": [], "held_out": later, "promoted": False}]) == later
    # What trained weights that did not serve may be held out; with all labels used there is nothing to compare on.
    history[0]["promoted"] = False
    assert len(hold_out(training, 0.5, history)) == 4
    history[0]["promoted"] = True
    assert hold_out(training, 0.5, history) == []
    assert len(hold_out(names[:3], 0.9, [])) == 2


def test_uncertainty_is_zero_to_one_and_sees_mask_class_and_mirror():
    def network(mask, classes):
        lesion = torch.as_tensor(mask).expand(2, 1, 8, 8).clone()
        return lambda images: {
            "pred": torch.cat([-lesion, lesion], 1),
            "class_logits": torch.as_tensor(classes).expand(2, 3),
        }

    image = torch.zeros(1, 1, 8, 8)
    sure, torn = [[50.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]
    block = torch.full((8, 8), -50.0)
    block[2:6, 2:6] = 50
    values = [float(image_uncertainty(network(m, c), image)) for m in (block, 0.0) for c in (sure, torn)]
    assert values == pytest.approx([0, 0.5, 0.5, 1], abs=1e-4)
    # A lesion that changes sides with the mirror image is one the network is unsure of.
    half = torch.full((8, 8), -50.0)
    half[:4] = 50
    flipped = lambda images: {  # noqa: E731
        "pred": torch.stack([torch.stack([-half, half])] * 2),
        "class_logits": torch.tensor(sure * 2),
    }
    assert float(image_uncertainty(flipped, image)) == pytest.approx(0.5, abs=1e-4)
