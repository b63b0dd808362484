"""Kills at random moments, and a full disk."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import torch
from campaign.process import NAMES, NETWORK, Case, Job, end_of, options, run
from campaign.training import tiny_set, training


def content_of(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the files of a folder, of weights that of their tensors."""
    files = [f for pattern in patterns for f in folder.rglob(pattern) if f.is_file()]
    result = {}
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".pt":
            state = torch.load(file, weights_only=True)
            content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
        result[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return result


def kill_campaign(project: Path, folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Training, inference and conversion, killed at a random moment and started again: the same result, or a line."""
    draw = random.Random(seed)
    data = tiny_set(folder / "data", 8)
    source = folder / "source"
    for name in NAMES:
        (source / name).mkdir(parents=True)
    for number, item in enumerate(sorted(data.glob("training*_label.png"))):
        name = NAMES[number % 3]
        for suffix, file in (("", item.with_name(item.name.replace("_label", ""))), ("_mask", item)):
            shutil.copy(file, source / name / f"{name} ({number}){suffix}.png")
    output_option = "output_dir" if "output_dir" in (project / "scripts" / "prepare_busi.py").read_text() else "output"
    (folder / "corners.py").write_text(NETWORK)
    (folder / "corners.json").write_text(json.dumps({"network_def": {"_target_": "corners.Corners", "norm": "batch"}}))
    config = f"['bundle/configs/inference.json','{folder / 'corners.json'}']"
    infer = options(config_file=config, bundle_root="bundle", load_pretrain=False, image_size=64, batch_size=1)
    infer += options(ckpt_dir=folder / "none", dataset_dir=data)

    def job(task: str, place: Path, log: str, after: float | None = None, again: bool = False) -> Job:
        resume = {"resume": True} if again else {}
        if task == "training":
            return Job(training(data, place, place / "out", epochs=3, **resume), folder / log, kill_after=after)
        if task == "inference":
            arguments = [*infer, *options(output_dir=place, **resume)]
            return Job(arguments, folder / log, kill_after=after, folder=folder)
        arguments = options(source=source, **{output_option: place})
        return Job(arguments, folder / log, "prepare_busi.py", after)

    patterns = {"training": ("model.pt",), "inference": ("*.png", "*.csv"), "conversion": ("*.png", "*.json")}
    tasks = list(patterns)
    began = {}
    for task in tasks:
        start_time = time.time()
        if run(project, [job(task, folder / task, f"{task}.log")]) != [0]:
            raise RuntimeError(f"{task} without a fault fails: {end_of(folder / f'{task}.log')}")
        began[task] = time.time() - start_time
    whole = {task: content_of(folder / task, patterns[task]) for task in tasks}
    runs = []
    for number in range(count):
        task = tasks[number % len(tasks)]
        runs.append((task, folder / f"{task} {number}", draw.uniform(0.3, 1.0) * began[task]))
    run(project, [job(task, place, f"{place.name} killed.log", after) for task, place, after in runs])
    again = [job(task, place, f"{place.name} again.log", again=True) for task, place, _ in runs]
    ends = []
    for (task, place, _), command, status in zip(runs, again, run(project, again)):
        if status == 0:
            left = [f for f in place.rglob(".*") if "partial" in f.name or f.name.startswith(".predictions")]
            end = "right" if content_of(place, patterns[task]) == whole[task] and not left else "silent"
        else:
            end = "named" if place.name in end_of(command.log) else "opaque"
        ends.append((Case(f"{task} killed", place.name, None), end))
    return ends


def full_disk_campaign(project: Path, folder: Path) -> list[tuple[Case, str]]:
    """Training and inference onto a small file system in memory; nothing where the rights to mount one are missing."""
    data = tiny_set(folder / "data", 8)
    ends = []
    for task, kilobytes in (("training", 60), ("training", 200), ("inference", 40), ("inference", 80)):
        place = folder / f"{task} {kilobytes}"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            return []
        try:
            if task == "training":
                job = Job(training(data, place / "m", folder / f"o{kilobytes}"), folder / f"{place.name}.log")
            else:
                (folder / "corners.py").write_text(NETWORK)
                (folder / "corners.json").write_text(
                    json.dumps({"network_def": {"_target_": "corners.Corners", "norm": "batch"}})
                )
                config = f"['bundle/configs/inference.json','{folder / 'corners.json'}']"
                arguments = options(config_file=config, bundle_root="bundle", load_pretrain=False, image_size=64)
                arguments += options(ckpt_dir=folder / "none", dataset_dir=data, output_dir=place)
                job = Job(arguments, folder / f"{place.name}.log", folder=folder)
            (status,) = run(project, [job])
            error = end_of(job.log)
            named = str(place) in error and "No space left" in error
            end = "silent" if status == 0 else "named" if named else "opaque"
            half = [f for f in place.rglob("*.p*") if "partial" in f.name]
            ends.append((Case(f"disk full, {task}", place.name, None), "silent" if half else end))
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return ends
