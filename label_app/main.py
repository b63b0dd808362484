"""MONAI Label app for breast ultrasound: mask and class, learnt from the labels of the person who uses it.

`make annotate STUDIES=DIR` starts it; docs/annotate.md explains it. Research software, not a medical device.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import numpy as np
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.async_tasks.utils import background_tasks
from monailabel.utils.others.generic import device_list, name_to_device

from breast_ultrasound.command import first_cause
from lib.choose import Behind, Disagreement, Uncertainty, strategies
from lib.datastore import ImageDatastore
from lib.errors import RequestError
from lib.images import read_grey
from lib.infer import ImageInfer
from lib.models import Models
from lib.names import check_suggestion_tag
from lib.problems import problems
from lib.progress import FAILED
from lib.study import read_study
from lib.train import ImageTrain, TrainingOptions

logger = logging.getLogger(__name__)
NAME = "breast_ultrasound"  # of the model, in the server's addresses
CLIENTS = ("client_id", "model", "device", "gpus", "multi_gpu")  # what clients add to the options of a training
CHOICES = ("result_extension", "polygons", "output")  # of a request, for the model; clients send much else
TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}(\.|$)")  # as tempfile names them, which the server uses for what it is sent


def end_with(server: int) -> None:
    """End this process, a task of a server, where the server has ended; the next one may work on the same folder."""
    while os.getppid() == server:
        time.sleep(0.5)
    os._exit(1)


class BatchInfer(BatchInferTask):
    """MONAI Label's own, which fails without a GPU under its default parameters and at the first unreadable image."""

    def __call__(self, request, datastore, infer):
        """Infer all images that the request names; give answers by id, with ``error`` for those that failed."""

        def infer_or_name(item, store):
            try:
                return infer(item, store)
            except Exception as error:  # whatever it is, the other images go on
                logger.error(f"left out: {item['image']}: {error}", exc_info=not isinstance(error, RequestError))
                return {"error": str(error)}

        request = {**request, "multi_gpu": False, "max_workers": 1}
        results = super().__call__(request, datastore, infer_or_name)
        failed = [name for name, result in results.items() if "error" in result]
        names = f": {', '.join(failed)}" if failed else ""
        logger.info(f"{len(results) - len(failed)} images done, {len(failed)} left out{names}")
        if failed and len(failed) == len(results):
            raise RequestError(422, f"no image could be done: {results[failed[0]]['error']}")
        return results


class App(MONAILabelApp):
    """One model, its trainer, and the strategies that choose the next image.

    Args:
        app_dir: this folder.
        studies: folder of images; labels, fine-tuned models and the state go below it.
        conf: ``bundle``: folder of the bundle.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        server = int(os.environ.get("LABEL_APP_SERVER", os.getpid()))
        if server != os.getpid():
            threading.Thread(target=end_with, args=(server,), daemon=True).start()
        bundle = Path(conf.get("bundle") or Path(app_dir).parent / "bundle").resolve()
        self.models = Models(bundle, Path(studies) / "models")
        self.study = read_study(studies)
        description = "Lesion mask and class in breast ultrasound. Research software, not a medical device."
        super().__init__(app_dir, studies, conf, name="Breast ultrasound", description=description)

    def init_datastore(self) -> ImageDatastore:
        """The folder of images."""
        return ImageDatastore(self.studies, self.models.class_names)

    def init_infers(self) -> dict:
        """The model."""
        return {NAME: ImageInfer(self.models)}

    def init_trainers(self) -> dict:
        """Its trainer."""
        return {NAME: ImageTrain(self.models)}

    def init_strategies(self) -> dict:
        """How the next image is chosen."""
        self.uncertainty, self.disagreement = Uncertainty(self.models), Disagreement(self.models)
        self.orders = strategies(self.uncertainty, self.disagreement)
        self.behind = Behind([self.uncertainty, self.disagreement], self._datastore)
        return self.orders

    def init_scoring_methods(self) -> dict:
        """Scores for the choices that ask the model."""
        return {"uncertainty": self.uncertainty, "disagreement": self.disagreement}

    def init_batch_infer(self) -> BatchInfer:
        """Inference over the folder."""
        return BatchInfer()

    def on_init_complete(self) -> None:
        """Name what cannot be used, tell of a training that was cut off, load what the first inference needs."""
        super().on_init_complete()
        found = problems(self._datastore, self.studies)
        for problem in found:
            logger.warning(f"left out: {problem}")
        logger.info(f"{len(self._datastore.list_images())} images, {len(found)} files left out")
        self.tell_cut_off_training()
        self.warm_up()
        if self._server_mode:
            self.behind.start()
        address = os.environ.get("LABEL_APP_ADDRESS")
        logger.info(f"Open {address}/annotate/ to annotate; give {address} to 3D Slicer or CVAT (docs/annotate.md).")

    def tell_cut_off_training(self) -> None:
        """Let GET /train/ say that the latest training did not come to its end with the server before this one."""
        began = self.models.training_cut_off()
        if not began:
            return
        line = f"cut off: the server ended before the training of {began} did; labels and models are as they were"
        logger.error(line)
        task = {"id": str(uuid.uuid4()), "status": "ERROR", "request": {"model": NAME}, "start_ts": began}
        background_tasks.setdefault("train", []).append({**task, "details": [f"{line}; train again"]})
        self.models.training_ended()

    def warm_up(self) -> None:
        """One inference, so that the first of a client takes no longer than the later ones."""
        try:
            file, _ = self._infers[NAME]({"image": np.tile(np.arange(256, dtype=np.uint8), (256, 1))})
            os.unlink(file)
        except Exception as error:  # labels can be given without suggestions
            logger.error(f"{self.models.serving()}: no inference with these weights: {first_cause(error)}")

    def infer(self, request: dict, datastore=None) -> dict:
        """Mask and class of an image, as ``MONAILabelApp.infer`` gives them.

        Raises:
            RequestError: model, image or an option is unknown, or the image cannot be read.
        """
        datastore = datastore or self._datastore
        self.check_task("infer", request.get("model"), {})
        task = self._infers[request["model"]]
        device = request.get("device") or ""
        if not isinstance(device, str) or not re.fullmatch(r"(cpu|cuda(:\d+)?)?", device):
            raise RequestError(400, f"device {device!r} is unknown; use {', '.join(device_list())}")
        tag = request.get("label_tag") or "original"
        image = str(request.get("image"))
        known = image in datastore.list_images()
        save = known and request.get("save_label")
        if save:
            check_suggestion_tag(tag)
        pixels = self._sent(image) if not known and self._uploaded(image) else datastore.grey(image)
        chosen = {name: request[name] for name in CHOICES if name in request}
        try:
            file, params = task({**chosen, "image": pixels, "device": name_to_device(device) if device else ""})
        except RequestError:
            raise
        except Exception as error:  # whatever it is, the image is named
            logger.error(f"{image}: no inference", exc_info=error)
            raise RequestError(500, f"{image}: no inference ({type(error).__name__}: {error})") from error
        label = file
        if save:
            info = {"model": NAME, "class": params["class"], "params": params}
            label = datastore.save_suggestion(image, file, tag, info)
        return {"label": label, "tag": "original", "file": file, "params": params}

    def _sent(self, path: str) -> np.ndarray:
        """An image that was sent, as ``read_grey`` gives it."""
        try:
            return read_grey(path)
        except ValueError as error:
            raise RequestError(422, f"the file sent is not a readable image ({error})") from error

    def _uploaded(self, path: str) -> bool:
        """Whether the server itself gave this path to a file sent to it; others would open the machine's files."""
        try:
            file = Path(os.path.realpath(path))
            sent = file.parent == Path(os.path.realpath(tempfile.gettempdir())) and TEMPORARY.match(file.name)
            session = self._sessions and Path(os.path.realpath(self._sessions.store_path)) in file.parents
            return file.is_file() and bool(sent or session)
        except (OSError, ValueError):  # too long, or with a zero in it
            return False

    def train(self, request: dict) -> dict:
        """Train."""
        try:
            entry = super().train(request)
        except Exception as error:
            self.models.training_ended()
            if self._server_mode:
                raise
            cause = first_cause(error)
            logger.error("traceback", exc_info=error)
            logger.error(f"{FAILED}{type(cause).__name__}: {cause}")
            sys.exit(1)  # a second traceback would hide the cause
        finally:
            time.sleep(1)  # the server reads this process's lines one by one, until it ends
        self.models.training_ended()
        return entry

    def next_sample(self, request: dict) -> dict:
        """The next image to label.

        Raises:
            RequestError: the strategy is unknown.
        """
        if request.get("strategy") not in self.orders:
            names = ", ".join(self.orders)
            raise RequestError(404, f"strategy {request.get('strategy')!r} is unknown; use {names}")
        return super().next_sample({"strategy": request["strategy"]})

    def on_save_label(self, image_id: str, label_id: str) -> dict:
        """Tell the client what was kept, and what the label lacks."""
        given, found = self._datastore.latest["class"], self._datastore.latest["warnings"]
        logger.info(f"label of {image_id}: {given or 'no class'}{''.join(f'; {warning}' for warning in found)}")
        return ({"class": given} if given else {}) | ({"warning": "; ".join(found)} if found else {})

    def check_task(self, kind: str, model: str, options: dict) -> None:
        """Refuse a training, scoring or batch inference before its process starts.

        Args:
            kind: ``train``, ``scoring``, ``batch/infer`` or ``infer``.
            model: its model; the method of a scoring.
            options: of the request.

        Raises:
            RequestError: there is no such model or method, or no label to learn from.
            ValidationError: an option of a training is not valid.
        """
        own, names = ("method", self._scoring_methods) if kind == "scoring" else ("model", self._infers)
        if model and model not in names:
            raise RequestError(404, f"{own} {model!r} is unknown; use {', '.join(names)}")
        if options.get(own, model) != model or "images" in options:
            raise RequestError(400, f"{own} and images belong into the address, not into the options")
        if not isinstance(options.get("gpus", ""), str):
            raise RequestError(400, "gpus are named by one text, such as 0,1")
        if kind == "batch/infer":
            check_suggestion_tag(options.get("label_tag", "original"))
            most = options.get("max_batch_size", 0)
            if type(most) is not int or most < 0:
                raise RequestError(400, f"max_batch_size is {most!r}; use a whole number from 0 up")
        if kind == "train":
            unknown = [name for name in options if name not in {*TrainingOptions.model_fields, *CLIENTS}]
            if unknown:
                names = ", ".join(TrainingOptions.model_fields)
                raise RequestError(400, f"unknown option {', '.join(map(repr, unknown))}; use {names}")
            TrainingOptions.model_validate(options)
            next(self._trainers[NAME].labels(self._datastore))
            self.models.training_started()
