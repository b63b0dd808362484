"""Compare this bundle's settings with MONAI's plain ones: images a second of training and of inference, as ratios.

The settings, each in a process of its own, take turns, so that a busy machine slows all alike:

    plain   fp32, the C library's default allocator, Dataset and DataLoader, BasicUNet's default width; inference one
            image at a time through SimpleInferer, with MONAI's own anti-aliasing, argmax and PILWriter
    same    the plain network under the bundle's settings (cache, allocator, mixed precision where the processor has it)
    bundle  the bundle as train.json and inference.json have it

and with --exports, which measures inference alone and peak memory, plain and bundle beside

    stock   the bundle's network under plain's settings: what the network gains, and what the settings
    onnx    inference_onnx.json with the float32 file of scripts/export.py, and
    int8    with its INT8 file
    predictor, predictor onnx
            scripts.predictor on a list of files, which writes nothing; latency of one image as an array; and where the
            milliseconds of an image go
    predictor.onnx, predictor_int8.onnx
            the files of scripts/export.py that hold everything, in ONNX Runtime alone, images read by OpenCV
    2 x ... two processes of bundle, onnx or int8, each with every second image and half of the threads, as
            multi_gpu_inference.json has it under torchrun

All of these but plain, whose network is another one, untrained, have the weights of `ckpt_dir`: masks as they are in
use, not noise, which takes longer to clean and to write.

A training epoch runs the bundle's trainer over PICTURES images, from the datalist to the optimizer's step, without
validation; the one-off filling of a cache is told apart. Inference goes from image files to mask files and table;
latency is that of a folder of one image in the same, warm process, median of ten.
Each round also times the network's own training step and a matrix product (2048 x 2048) in the same precision and on
the same threads: what share of the processor's peak the step reaches says how much any setting could still gain.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from command_line import BUNDLE, CONFIGS, ROOT, bundle_arguments

from scripts.data import read_datalist
from scripts.files import sha256, write_json

PLAIN_NETWORK = {"features": [32, 32, 64, 128, 256, 32], "downscale_factor": 1}
PLAIN_DATA = {
    "train#dataset": {
        "_target_": "Dataset",
        "data": "$monai.data.load_decathlon_datalist(@datalist, True, 'training', @dataset_dir)",
        "transform": "@train#preprocessing",
    },
    "train#dataloader": {
        "_target_": "DataLoader",
        "dataset": "@train#dataset",
        "batch_size": "@batch_size",
        "sampler": "@train#sampler",
        "collate_fn": "@train#collate",
    },
}
TRAINING = {
    "plain": {**PLAIN_NETWORK, **PLAIN_DATA},
    "same": PLAIN_NETWORK,
    "bundle": {},
}
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
    "same": PLAIN_NETWORK,
    "stock": PLAIN_SETTINGS,
    "bundle": {},
    "onnx": {"onnx_file": "model.onnx"},
    "int8": {"onnx_file": "model_int8.onnx"},
    "predictor": {},
    "predictor onnx": {"onnx_file": "model.onnx"},
    "predictor.onnx": {},
    "predictor_int8.onnx": {},
}
INFERENCE_ALONE = tuple(name for name in INFERENCE if name != "same")
UNTUNED = ("plain", "stock")  # in fp32 and with the C library's default allocator
SHARED = "2 x "
MEASURES = ("epoch_s", "step_s", "inference_s", "latency_s")
TITLES = dict(zip(MEASURES, ("training epoch", "network step", "inference", "latency")))


def benchmark(
    dataset_dir: Path,
    image_size: int = 256,
    pictures: int = 32,
    rounds: int = 5,
    amp: Literal["auto", True, False] = "auto",
    exports: Path | None = None,
    ckpt_dir: Path = BUNDLE / "models",
    output: Path | None = None,
) -> None:
    """Measure and print; write the figures to `output` as JSON where it is given.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        image_size: side of the square that the network sees, in pixels.
        pictures: images of an epoch and of an inference run.
        rounds: how often every setting takes its turn; one more comes first to warm up.
        amp: mixed precision of all settings but `plain` and `stock`: auto, True or False, as in the configs. False
            shows what remains on a processor without native bfloat16.
        exports: folder of scripts/export.py; inference alone is measured then, ONNX Runtime beside PyTorch.
        ckpt_dir: folder of the weights, `model.pt`, that the exports were made from; only read with `exports`.
        output: file for the figures.

    Raises:
        ValueError: the exports were made from other weights.
        FileNotFoundError: the folder holds no datalist, or weights or exports are missing.
    """
    datalist = dataset_dir / "datalist.json"
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist} does not exist; give --dataset_dir a folder of scripts/prepare_busi.py")
    dataset_dir = datalist.parent.resolve()
    shared = tuple(SHARED + name for name in ("bundle", "onnx", "int8"))
    settings = (*INFERENCE_ALONE, *shared) if exports else tuple(TRAINING)
    models = ckpt_dir.resolve()
    if exports:
        for name in ("model.onnx", "model_int8.onnx", "predictor.onnx", "predictor_int8.onnx"):
            if not (exports / name).is_file():
                raise FileNotFoundError(f"{exports / name}: missing; write it with scripts/export.py")
        if not (models / "model.pt").is_file():
            raise FileNotFoundError(f"{models / 'model.pt'}: missing; name the folder of the weights with --ckpt_dir")
        made_from = json.loads((exports / "exports.json").read_text(encoding="utf-8"))["weights_sha256"]
        if made_from != sha256(models / "model.pt"):
            raise ValueError(
                f"{exports}: made from other weights than {models / 'model.pt'}; run scripts/export.py again"
            )

    with tempfile.TemporaryDirectory() as folder:
        parts = read_datalist(datalist)
        items = (parts["training"] * pictures)[:pictures]
        (Path(folder) / "datalist.json").write_text(json.dumps({"training": items}))
        (Path(folder) / "images").mkdir()
        for number, item in enumerate(items):
            shutil.copy(dataset_dir / item["image"], Path(folder) / "images" / f"{number}.png")
        (Path(folder) / "single").mkdir()
        shutil.copy(dataset_dir / items[0]["image"], Path(folder) / "single" / "0.png")
        exported = str(exports.resolve()) if exports else ""
        results = _take_turns(settings, folder, dataset_dir, image_size, rounds, amp, exported, str(models))

    figures = {
        "image_size": image_size,
        "pictures": pictures,
        "rounds": rounds,
        "threads": results["plain"][0]["threads"],
        "processor": _processor(),
        "native_bfloat16": results["plain"][0]["native_bfloat16"],
        "amp": amp,
        **({"weights_sha256": sha256(models / "model.pt")} if exports else {}),
        "settings": {name: _condense(turns) for name, turns in results.items()},
        "stages_ms": {name: turns[-1]["stages_ms"] for name, turns in results.items() if "stages_ms" in turns[0]},
        "faster_than_plain": {
            name: {what: _ratio(results, name, what) for what in MEASURES if what in results[name][0]}
            for name in settings[1:]
        },
    }
    _report(figures)
    if output:
        write_json(output, figures)


def _take_turns(
    settings: tuple[str, ...],
    folder: str,
    dataset_dir: Path,
    image_size: int,
    rounds: int,
    amp: bool | str,
    exports: str,
    models: str,
) -> dict[str, list[dict]]:
    """Return for each setting the list of its rounds, each a dict of seconds and counts."""
    context = multiprocessing.get_context("spawn")  # a fork would share the allocator's state
    workers = {}
    for name in settings:
        processes = 2 if name.startswith(SHARED) else 1
        workers[name] = []
        for rank in range(processes):
            here, there = context.Pipe()
            amp_here = False if name in UNTUNED else amp
            share = (rank, processes)
            arguments = (
                there,
                name.removeprefix(SHARED),
                share,
                folder,
                str(dataset_dir),
                image_size,
                amp_here,
                exports,
                models,
            )
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            there.close()  # so that a worker that is killed ends the wait for it
            workers[name].append((process, here))
    results = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, shares in workers.items():
            for _, pipe in shares:
                pipe.send("go")
            measured = _join([pipe.recv() for _, pipe in shares], name)
            if turn:
                results[name].append(measured)
                times = ", ".join(f"{TITLES[k]} {measured[k]:.2f} s" for k in MEASURES if k in measured)
                print(f"round {turn}/{rounds} {name:20}{times}", flush=True)
    for shares in workers.values():
        for process, pipe in shares:
            pipe.send("stop")
            process.join()
    return results


def _join(answers: list[dict | str], name: str) -> dict:
    """One answer of the processes that share a setting: the slowest one's time, the memory of all."""
    for answer in answers:
        if isinstance(answer, str):
            raise RuntimeError(f"the setting '{name}' failed: {answer}")
    if len(answers) == 1:
        return answers[0]
    return {
        "inference_s": max(answer["inference_s"] for answer in answers),
        "peak_memory_mb": sum(answer["peak_memory_mb"] for answer in answers),
    }


def _work(
    pipe: Connection,
    name: str,
    share: tuple[int, int],
    folder: str,
    dataset_dir: str,
    image_size: int,
    amp: bool | str,
    exports: str,
    models: str,
) -> None:
    """Run one setting, or this process's share of it, round by round, as the other end of the pipe asks for."""
    rank, processes = share
    sys.stdout = open(os.devnull, "w")  # MONAI's logs and bars; the parent prints
    import torch
    from monai.bundle import ConfigParser, ConfigWorkflow

    from scripts.command import keep_freed_memory
    from scripts.inferers import fast_bfloat16

    def workflow(kind: str, settings: dict) -> ConfigParser:
        common = {"image_size": image_size, "ckpt_dir": models if shipped else folder}
        common |= {"output_dir": f"{folder}/{name}_{rank}_{processes}", "device": "cpu", "amp": amp}
        files = [str(CONFIGS / f"{kind}.json")]
        if "onnx_file" in settings:
            files.append(str(CONFIGS / f"{kind}_onnx.json"))
            settings = {**settings, "onnx_file": f"{exports}/{settings['onnx_file']}"}
        config = ConfigWorkflow(files, workflow_type=kind, **common, **settings)
        config.parser["initialize"] = ["$monai.utils.set_determinism(seed=0)"]
        config.initialize()
        return config.parser

    def predict(pictures: str) -> Callable[[], float]:
        """A whole run of inference over a folder, ready to be repeated."""
        settings = {**INFERENCE[name], "dataset_dir": f"{folder}/{pictures}", "weights": weights}
        settings |= {"dataset#data": f"$@images[{rank} :: {processes}]"}
        parser = workflow("inference", settings)
        evaluator = parser.get_parsed_content("evaluator")
        parser.get_parsed_content("checkpointloader")(evaluator)

        def call() -> None:
            with contextlib.redirect_stderr(sys.stdout):
                evaluator.run()

        return lambda: _time(call)

    shipped = exports and name != "plain"
    weights = f"{models}/model.pt" if shipped else f"{folder}/{name}_{rank}_{processes}.pt"
    try:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
        if name not in UNTUNED:
            keep_freed_memory()
        facts = {"threads": torch.get_num_threads(), "native_bfloat16": fast_bfloat16("cpu")}
        measures = {}
        if not exports:
            more, measures = _training(name, workflow, folder, dataset_dir, amp, weights)
            facts |= more
        elif not shipped:
            torch.save(workflow("train", TRAINING[name]).get_parsed_content("network_def").state_dict(), weights)
        if name.endswith(".onnx"):
            measures = _session(f"{exports}/{name}", f"{folder}/images")
        elif name.startswith("predictor"):
            measures = _predictor(INFERENCE[name], f"{folder}/images", models, exports, amp)
        else:
            measures |= {"inference_s": predict("images")}
            if processes == 1:
                single = predict("single")
                measures |= {"latency_s": lambda: statistics.median(single() for _ in range(10))}
        while pipe.recv() == "go":
            measured = {**facts, **{key: measure() for key, measure in measures.items()}}
            if exports:
                measured["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send(measured)
    except Exception as error:  # whatever it is, the parent has to hear of it
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def _training(
    name: str, workflow: Callable, folder: str, dataset_dir: str, amp: bool | str, weights: str
) -> tuple[dict, dict[str, Callable[[], float]]]:
    """Facts about the network, whose weights are saved, and what measures its training."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from scripts.data import prepare_batch
    from scripts.inferers import fast_bfloat16

    data = {"dataset_dir": dataset_dir, "datalist": f"{folder}/datalist.json"}
    without = {"train#handlers": [], "train#state_handlers": []}
    train = workflow("train", {**TRAINING[name], **data, **without})
    start = time.perf_counter()
    with contextlib.redirect_stderr(sys.stdout):
        train.get_parsed_content("train#dataset")
    cache_s = time.perf_counter() - start
    trainer = train.get_parsed_content("train#trainer")
    network, loss, optimizer = (train.get_parsed_content(i) for i in ("network", "loss", "optimizer"))
    inferer = train.get_parsed_content("train#inferer")
    mixed = fast_bfloat16("cpu") if amp == "auto" else amp
    precision = torch.bfloat16 if mixed else torch.float32
    image, targets = prepare_batch(next(iter(train.get_parsed_content("train#dataloader"))), "cpu")

    def step() -> None:
        optimizer.zero_grad()
        loss(inferer(image, network), targets).backward()
        optimizer.step()

    def epoch() -> float:
        network.train()
        trainer.state.max_epochs = trainer.state.epoch + 1
        return _time(trainer.run)

    def matrix() -> float:
        factor = torch.rand(2048, 2048, dtype=precision)
        return 2 * 2.048**3 / _time(lambda: factor @ factor)

    with FlopCounterMode(display=False) as counter:
        step()
    facts = {"cache_s": cache_s, "gflop_per_picture": counter.get_total_flops() / 1e9 / len(image)}
    torch.save(network.state_dict(), weights)
    return facts, {"epoch_s": epoch, "step_s": lambda: _time(step) / len(image), "matrix_gflop_per_s": matrix}


def _session(file: str, images: str) -> dict[str, Callable[[], float]]:
    """What measures a file that holds everything."""
    import cv2

    from scripts.networks import onnx_session

    session = onnx_session(file)
    files = sorted(map(str, Path(images).iterdir()))

    def predict(path: str) -> None:
        session.run(None, {"image": cv2.imread(path, cv2.IMREAD_GRAYSCALE)})

    array = cv2.imread(files[0], cv2.IMREAD_GRAYSCALE)
    return {
        "inference_s": lambda: _time(lambda: [predict(path) for path in files]),
        "latency_s": lambda: statistics.median(_time(lambda: session.run(None, {"image": array})) for _ in range(10)),
    }


def _predictor(
    settings: dict, images: str, models: str, exports: str, amp: bool | str
) -> dict[str, Callable[[], object]]:
    """What measures the class Predictor, and the median milliseconds of the parts of its work on one image."""
    import numpy as np
    import torch
    from PIL import Image

    from scripts.predictor import Predictor

    onnx_file = f"{exports}/{settings['onnx_file']}" if settings else None
    predictor = Predictor(onnx_file=onnx_file, ckpt_dir=models, device=torch.device("cpu"), amp=amp)
    files = sorted(Path(images).iterdir())
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
    """Return the medians over the rounds; of a training also the step's GFLOP/s beside the matrix product's."""
    kinds = ("_s", "picture", "_mb")
    median = {key: statistics.median(t[key] for t in turns) for key in turns[0] if key.endswith(kinds)}
    rounded = {key: round(value, 4) for key, value in median.items()}
    if "step_s" not in median:
        return rounded
    speed = median["gflop_per_picture"] / median["step_s"]
    share = statistics.median(t["gflop_per_picture"] / t["step_s"] / t["matrix_gflop_per_s"] for t in turns)
    return {**rounded, "step_gflop_per_s": round(speed, 1), "share_of_matrix_peak": round(share, 3)}


def _ratio(results: dict[str, list[dict]], name: str, what: str) -> dict:
    """Return how many times faster than plain a setting was: median and range over the rounds."""
    ratios = [plain[what] / other[what] for plain, other in zip(results["plain"], results[name])]
    return {"median": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)]}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _report(figures: dict) -> None:
    count = figures["pictures"]
    print(f"\n{figures['processor']}, {figures['threads']} threads, {figures['image_size']} pixels, ", end="")
    print(f"native bfloat16: {'yes' if figures['native_bfloat16'] else 'no'}, amp {figures['amp']}; ", end="")
    print(f"medians of {figures['rounds']} rounds")
    for name, s in figures["settings"].items():
        cells = [f"inference {count / s['inference_s']:.1f} images/s"]
        if "latency_s" in s:
            cells.append(f"latency {1000 * s['latency_s']:.0f} ms")
        if "epoch_s" in s:
            cells += [f"training {count / s['epoch_s']:.1f} images/s after {s['cache_s']:.1f} s of caching"]
            cells += [
                f"step {s['step_gflop_per_s']:.1f} GFLOP/s, {s['share_of_matrix_peak']:.0%} of the matrix product"
            ]
        if "peak_memory_mb" in s:
            cells.append(f"peak memory {s['peak_memory_mb']:.0f} MB")
        print(f"{name:20}{', '.join(cells)}")
    for name, ratios in figures["faster_than_plain"].items():
        for what, ratio in ratios.items():
            low, high = ratio["range"]
            print(f"{name}: {TITLES[what]} {ratio['median']} times as fast as plain ({low} to {high})")


def benchmark_folders(
    dataset_dir: Path,
    sizes: tuple[int, ...] = (1000, 10000),
    ckpt_dir: Path = BUNDLE / "models",
    output: Path | None = None,
) -> dict:
    """Measure and print; write the figures to `output` as JSON where it is given.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        sizes: numbers of images.
        ckpt_dir: folder of the weights.
        output: file for the figures.

    Returns:
        dict: the figures by size.

    Raises:
        ValueError: the command failed.
        FileNotFoundError: there are no images.
    """
    images = dataset_dir.resolve() / "images"
    pictures = sorted(images.glob("*.png"))
    if not pictures:
        raise FileNotFoundError(f"{images}: no images; give --dataset_dir a folder of scripts/prepare_busi.py")
    figures = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "pictures").mkdir()
            for number in range(size):
                (Path(folder) / "pictures" / f"{number}.png").symlink_to(pictures[number % len(pictures)])
            seconds, memory = _measure(folder, ckpt_dir.resolve())
            rows = (Path(folder) / "masks" / "predictions.csv").read_text(encoding="utf-8").count("\n") - 1
            if rows != size:
                raise ValueError(f"{rows} of {size} images in the table; see the command's log above")
        figures[str(size)] = {
            "seconds": round(seconds, 1),
            "pictures_a_second": round(size / seconds, 1),
            "peak_memory_mb": round(memory),
        }
        print(f"{size} images: {size / seconds:.1f} a second, peak memory {memory:.0f} MB", flush=True)
    if output:
        write_json(output, figures)
    return figures


def _measure(folder: str, ckpt_dir: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run of the command."""
    paths = {"dataset_dir": f"{folder}/pictures", "output_dir": f"{folder}/masks", "ckpt_dir": ckpt_dir}
    command = [sys.executable, *bundle_arguments("run", "inference", **paths)]
    with open(f"{folder}/log", "w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone, which getrusage cannot tell apart
        seconds = time.perf_counter() - start
    if status:
        raise ValueError(Path(f"{folder}/log").read_text(encoding="utf-8").strip().splitlines()[-1])
    return seconds, usage.ru_maxrss / 1024
