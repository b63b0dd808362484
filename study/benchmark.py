"""Compare this bundle's inference with MONAI's plain settings: images a second, latency and memory, as ratios.

The settings, each in a process of its own, take turns, so that a busy machine slows all alike:

    plain   fp32, the C library's default allocator, BasicUNet's default width, untrained; one image at a time through
            SimpleInferer, with MONAI's own anti-aliasing, argmax and PILWriter
    stock   the bundle's network under plain's settings: what the network gains, and what the settings
    bundle  the bundle as inference.json has it
    small   the same with the weights of models/small
    onnx    inference_onnx.json with the float32 file of scripts/export.py, and
    int8    with its INT8 file, where there is one
    predictor, predictor onnx
            Predictor on a list of files, which writes nothing; latency of one image as an array; and where the
            milliseconds of an image go
    predictor.onnx, predictor_int8.onnx
            the files of scripts/export.py that hold everything, in ONNX Runtime alone, images read by OpenCV

All but plain and small have the weights of `ckpt_dir`: masks as they are in use, not noise, which takes longer to clean
and to write. Inference goes from image files to mask files and table; latency is that of a folder of one image in the
same, warm process, median of ten.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tools.cli import BUNDLE, CONFIGS

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import sha256, write_json
from study.experiments import commit

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

PLAIN_NETWORK = {"features": [32, 32, 64, 128, 256, 32], "downscale_factor": 1}
PLAIN_SETTINGS = {
    "network": "$@network_def.to(@device)",
    "batch_size": 1,
    "inferer": {"_target_": "SimpleInferer"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": "@batch_size"},
    "resize": {"_target_": "Resized", "keys": "image", "spatial_size": "$[@image_size] * 2", "anti_aliasing": True},
    "lesion_only": {"_target_": "Identityd", "keys": "pred"},
    "lesion_mask": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    "save_mask#writer": "PILWriter",
}
INFERENCE = {
    "plain": {**PLAIN_NETWORK, **PLAIN_SETTINGS},
    "stock": PLAIN_SETTINGS,
    "bundle": {},
    "small": {},
    "onnx": {"onnx_file": "model.onnx"},
    "int8": {"onnx_file": "model_int8.onnx"},
    "predictor": {},
    "predictor onnx": {"onnx_file": "model.onnx"},
    "predictor.onnx": {},
    "predictor_int8.onnx": {},
}
UNTUNED = ("plain", "stock")  # in fp32 and with the C library's default allocator
NEEDED = ("model.onnx", "predictor.onnx")
TITLES = {"inference_s": "inference", "latency_s": "latency"}


@dataclass(frozen=True)
class Work:
    """What one process measures.

    Args:
        name: of the setting.
        folder: with `images` and `single`, folders of images; scratch space.
        exports: folder of scripts/export.py.
        models: folder of the weights.
        amp: mixed precision, as in the configs.
    """

    name: str
    folder: Path
    exports: Path
    models: Path
    amp: bool | str = "auto"

    @property
    def weights(self) -> Path:
        """The setting's own: plain's are those of another network, made on the spot."""
        if self.name == "small":
            return BUNDLE / "models" / "small" / "model.pt"
        return self.folder / "plain.pt" if self.name == "plain" else self.models / "model.pt"

    @property
    def possible(self) -> bool:
        """Whether the exported file that it runs, if any, is there."""
        file = self.name if self.name.endswith(".onnx") else INFERENCE[self.name].get("onnx_file")
        return file is None or (self.exports / file).is_file()

    def config(self, kind: str, **ids: object) -> ConfigParser:
        """The bundle's config of a kind under the setting."""
        from monai.bundle import ConfigWorkflow

        ids = {**INFERENCE[self.name], **ids, "device": "cpu", "amp": self.amp, "ckpt_dir": str(self.weights.parent)}
        ids |= {"output_dir": str(self.folder / f"out {self.name}")}
        files = [str(CONFIGS / f"{kind}.json")]
        if "onnx_file" in ids:
            files.append(str(CONFIGS / f"{kind}_onnx.json"))
            ids["onnx_file"] = str(self.exports / ids["onnx_file"])
        workflow = ConfigWorkflow(files, workflow_type=kind, **ids)
        workflow.parser["initialize"] = ["$monai.utils.set_determinism(seed=0)"]
        workflow.initialize()
        return workflow.parser

    def prediction(self, images: str) -> Callable[[], float]:
        """A whole run of inference over a folder, ready to be repeated; its seconds."""
        parser = self.config("inference", dataset_dir=str(self.folder / images), weights=str(self.weights))
        evaluator = parser.get_parsed_content("evaluator")
        parser.get_parsed_content("checkpointloader")(evaluator)

        def call() -> None:
            with contextlib.redirect_stderr(sys.stdout):
                evaluator.run()

        return lambda: _time(call)

    def measures(self) -> dict[str, Callable[[], object]]:
        """What is measured, by name."""
        if self.name.endswith(".onnx"):
            return _session(self.exports / self.name, self.folder / "images")
        if self.name.startswith("predictor"):
            return _predictor(self)
        single = self.prediction("single")
        return {
            "inference_s": self.prediction("images"),
            "latency_s": lambda: statistics.median(single() for _ in range(10)),
        }


def benchmark(
    dataset_dir: Path,
    exports: Path,
    ckpt_dir: Path = BUNDLE / "models",
    output: Path | None = None,
    images: int = 60,
    rounds: int = 3,
    amp: Literal["auto", True, False] = "auto",
) -> dict:
    """Measure and print; write the figures to `output` as JSON where it is given.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        exports: folder of scripts/export.py.
        ckpt_dir: folder of the weights, `model.pt`, that the exports were made from.
        output: file for the figures.
        images: of an inference run, from the training split.
        rounds: how often every setting takes its turn; one more comes first to warm up.
        amp: mixed precision of all settings but `plain` and `stock`: auto, True or False, as in the configs. False
            shows what remains on a processor without native bfloat16.

    Returns:
        dict: the figures.

    Raises:
        ValueError: the exports were made from other weights.
        FileNotFoundError: the folder holds no datalist, or weights or exports are missing.
    """
    dataset, exports, models = dataset_dir.resolve(), exports.resolve(), ckpt_dir.resolve()
    for file, remedy in (
        (dataset / "datalist.json", "prepare the folder"),
        *((exports / name, "write it with scripts/export.py") for name in NEEDED),
        (models / "model.pt", "name the folder of the weights"),
    ):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; {remedy}")
    weights = sha256(models / "model.pt")
    if json.loads((exports / "exports.json").read_text(encoding="utf-8"))["weights_sha256"] != weights:
        raise ValueError(f"{exports}: made from other weights than {models / 'model.pt'}; run scripts/export.py again")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = (read_datalist(dataset / "datalist.json")["training"] * images)[:images]
        for inner, chosen in (("images", items), ("single", items[:1])):
            (folder / inner).mkdir()
            for number, item in enumerate(chosen):
                shutil.copy(dataset / item["image"], folder / inner / f"{number}.png")
        found = _take_turns(Work("plain", folder, exports, models, amp), rounds)
    facts = {key: found["plain"][0][key] for key in ("threads", "native_bfloat16")}
    figures = {"images": images, "rounds": rounds, "amp": amp, "processor": _processor(), **facts}
    figures |= {"weights_sha256": weights, "commit": commit()}
    figures["settings"] = {name: _condense(turns) for name, turns in found.items()}
    figures["stages_ms"] = {name: turns[-1]["stages_ms"] for name, turns in found.items() if "stages_ms" in turns[0]}
    figures["faster_than_plain"] = {
        name: {what: _ratio(found, name, what) for what in TITLES} for name in found if name != "plain"
    }
    print(json.dumps(figures, indent=4))
    if output:
        write_json(output, figures)
    return figures


def _take_turns(work: Work, rounds: int) -> dict[str, list[dict]]:
    """For each setting the list of its rounds, each a dict of seconds and counts.

    Raises:
        RuntimeError: a setting failed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the allocator's state
    settings = [replace(work, name=name, amp=False if name in UNTUNED else work.amp) for name in INFERENCE]
    settings = [own for own in settings if own.possible]
    pipes, results = {}, {own.name: [] for own in settings}
    for own in settings:
        pipes[own.name], there = context.Pipe()
        context.Process(target=_work, args=(there, own), daemon=True).start()
        there.close()  # so that a worker that is killed ends the wait for it
    for turn in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send("go")
            measured = pipe.recv()
            if isinstance(measured, str):
                raise RuntimeError(f"the setting '{name}' failed: {measured}")
            if turn:
                results[name].append(measured)
                times = ", ".join(f"{title} {measured[k]:.2f} s" for k, title in TITLES.items())
                print(f"round {turn}/{rounds} {name:20}{times}", flush=True)
    for pipe in pipes.values():
        pipe.send("stop")
    return results


def _work(pipe: Connection, work: Work) -> None:
    """Run one setting round by round, as the other end of the pipe asks for."""
    sys.stdout = open(os.devnull, "w")  # MONAI's logs and bars; the parent prints
    import torch

    from breast_ultrasound.command import keep_freed_memory
    from breast_ultrasound.inferers import fast_bfloat16

    try:
        if work.name not in UNTUNED:
            keep_freed_memory()
        if work.name == "plain":
            torch.save(work.config("inference").get_parsed_content("network_def").state_dict(), work.weights)
        facts = {"threads": torch.get_num_threads(), "native_bfloat16": fast_bfloat16("cpu")}
        measures = work.measures()
        while pipe.recv() == "go":
            measured = {**facts, **{key: measure() for key, measure in measures.items()}}
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send({**measured, "peak_memory_mb": memory})
    except Exception as error:  # whatever it is, the parent has to hear of it
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def _session(file: Path, images: Path) -> dict[str, Callable[[], float]]:
    """What measures a file that holds everything."""
    import cv2

    from breast_ultrasound.networks import onnx_session

    session = onnx_session(str(file))
    files = sorted(map(str, images.iterdir()))

    def predict(path: str) -> None:
        session.run(None, {"image": cv2.imread(path, cv2.IMREAD_GRAYSCALE)})

    array = cv2.imread(files[0], cv2.IMREAD_GRAYSCALE)
    return {
        "inference_s": lambda: _time(lambda: [predict(path) for path in files]),
        "latency_s": lambda: statistics.median(_time(lambda: session.run(None, {"image": array})) for _ in range(10)),
    }


def _predictor(work: Work) -> dict[str, Callable[[], object]]:
    """What measures the class Predictor, and the median milliseconds of the parts of its work on one image."""
    import numpy as np
    import torch
    from PIL import Image

    from breast_ultrasound.predictor import Predictor

    onnx = {name: str(work.exports / file) for name, file in INFERENCE[work.name].items()}
    where = {"ckpt_dir": str(work.models), "device": torch.device("cpu"), "amp": work.amp}
    predictor = Predictor(predict_refused=True, **where, **onnx)
    files = sorted((work.folder / "images").iterdir())
    array = np.asarray(Image.open(files[0]).convert("L"))

    def stages() -> dict[str, float]:
        parts: dict[str, list[float]] = {}
        for file in files:
            pixels = np.asarray(Image.open(file).convert("L"))
            item = predictor.prepared(pixels)
            with torch.inference_mode():
                for name, call in (
                    ("file to tensor", lambda: predictor.prepared(file)),
                    ("array to tensor", lambda: predictor.prepared(pixels)),
                    ("network", lambda: predictor.inferer(item["image"][None], predictor.network)),
                    ("whole array", lambda: predictor(pixels)),
                ):
                    parts.setdefault(name, []).append(_time(call))
        return {name: round(1000 * statistics.median(times), 1) for name, times in parts.items()}

    return {
        "inference_s": lambda: _time(lambda: predictor(files)),
        "latency_s": lambda: statistics.median(_time(lambda: predictor(array)) for _ in range(10)),
        "stages_ms": stages,
    }


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _condense(turns: list[dict]) -> dict[str, float]:
    """The medians over the rounds."""
    kinds = ("_s", "_mb")
    return {key: round(statistics.median(t[key] for t in turns), 4) for key in turns[0] if key.endswith(kinds)}


def _ratio(results: dict[str, list[dict]], name: str, what: str) -> dict:
    """Return how many times faster than plain a setting was: median and range over the rounds."""
    ratios = [plain[what] / other[what] for plain, other in zip(results["plain"], results[name])]
    return {"median": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)]}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
