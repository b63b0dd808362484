"""Compare this bundle's settings with MONAI's plain ones: pictures a second of training and of inference, as ratios.

    python scripts/benchmark.py --dataset_dir PREPARED [--image_size 160] [--rounds 5] [--amp auto] [--output FILE]

Three settings, each in a process of its own, take turns, so that a busy machine slows all alike:

    plain   fp32, the C library's default allocator, Dataset and DataLoader, BasicUNet's default width; inference one
            picture at a time through SimpleInferer
    same    the plain network under the bundle's settings (cache, allocator, mixed precision where the processor has it)
    bundle  the bundle as train.json and inference.json have it

A training epoch runs the bundle's trainer over PICTURES pictures, from the datalist to the optimizer's step, without
validation; the one-off filling of a cache is told apart. Inference goes from picture files to mask files and table.
Each round also times the network's own training step and a matrix product (2048 x 2048) in the same precision and on
the same threads: what share of the processor's peak the step reaches says how much any setting could still gain.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import fire
from command_line import asked_for_help

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bundle" / "configs"
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
    },
}
TRAINING = {
    "plain": {**PLAIN_NETWORK, **PLAIN_DATA},
    "same": PLAIN_NETWORK,
    "bundle": {},
}
INFERENCE = {
    "plain": {**PLAIN_NETWORK, "batch_size": 1, "inferer": {"_target_": "SimpleInferer"}},
    "same": PLAIN_NETWORK,
    "bundle": {},
}


def benchmark(dataset_dir="", image_size=160, pictures=32, rounds=5, amp="auto", output="", *extra, **unknown):
    """Measure and print; write the figures to `output` as JSON where it is given.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py.
        image_size: side of the square that the network sees, in pixels.
        pictures: pictures of an epoch and of an inference run.
        rounds: how often every setting takes its turn; one more comes first to warm up.
        amp: mixed precision of the settings `same` and `bundle`: auto, True or False, as in the configs. False shows
            what remains on a processor without native bfloat16.
        output: file for the figures.

    Raises:
        ValueError: an option is unknown or missing.
        FileNotFoundError: the folder holds no datalist.
    """
    if asked_for_help(benchmark, extra, unknown):
        return
    datalist = Path(str(dataset_dir)) / "datalist.json"
    if dataset_dir in ("", True) or not datalist.is_file():
        raise FileNotFoundError(f"{datalist} does not exist; give --dataset_dir a folder of scripts/prepare_busi.py")
    dataset_dir = datalist.parent.resolve()

    with tempfile.TemporaryDirectory() as folder:
        parts = json.loads(datalist.read_text(encoding="utf-8"))
        items = (parts["training"] * pictures)[:pictures]
        (Path(folder) / "datalist.json").write_text(json.dumps({"training": items}))
        (Path(folder) / "images").mkdir()
        for number, item in enumerate(items):
            shutil.copy(dataset_dir / item["image"], Path(folder) / "images" / f"{number}.png")
        results = _take_turns(folder, dataset_dir, image_size, rounds, amp)

    figures = {
        "image_size": image_size,
        "pictures": pictures,
        "rounds": rounds,
        "threads": results["plain"][0]["threads"],
        "processor": _processor(),
        "native_bfloat16": results["plain"][0]["native_bfloat16"],
        "amp": amp,
        "settings": {name: _condense(turns) for name, turns in results.items()},
        "faster_than_plain": {
            name: {what: _ratio(results, name, what) for what in ("epoch_s", "step_s", "inference_s")}
            for name in ("same", "bundle")
        },
    }
    _report(figures)
    if output:
        temporary = Path(f"{output}.{os.getpid()}.partial")
        temporary.write_text(json.dumps(figures, indent=4) + "\n", encoding="utf-8")
        os.replace(temporary, str(output))


def _take_turns(folder, dataset_dir, image_size, rounds, amp):
    """Return for each setting the list of its rounds, each a dict of seconds and counts."""
    context = multiprocessing.get_context("spawn")  # a fork would share the allocator's state
    workers = {}
    for name in TRAINING:
        here, there = context.Pipe()
        arguments = (there, name, folder, str(dataset_dir), image_size, False if name == "plain" else amp)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        there.close()  # so that a worker that is killed ends the wait for it
        workers[name] = (process, here)
    results = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, (_, pipe) in workers.items():
            pipe.send("go")
            measured = pipe.recv()
            if isinstance(measured, str):
                raise RuntimeError(f"the setting '{name}' failed: {measured}")
            if turn:
                results[name].append(measured)
                print(f"round {turn}/{rounds} {name:7}", end="")
                print(f"epoch {measured['epoch_s']:.1f} s, inference {measured['inference_s']:.1f} s", flush=True)
    for process, pipe in workers.values():
        pipe.send("stop")
        process.join()
    return results


def _work(pipe, name, folder, dataset_dir, image_size, amp):
    """Run one setting round by round in this process, as the other end of the pipe asks for."""
    sys.path.insert(0, str(ROOT / "bundle"))
    sys.stdout = open(os.devnull, "w")  # MONAI's logs and bars; the parent prints
    import torch
    from monai.bundle import ConfigWorkflow
    from torch.utils.flop_counter import FlopCounterMode

    from scripts.data import prepare_batch
    from scripts.inferer import fast_bfloat16
    from scripts.training import keep_freed_memory

    def workflow(kind, settings):
        common = {"image_size": image_size, "ckpt_dir": folder, "output_dir": f"{folder}/{kind}"}
        common |= {"device": "cpu", "amp": amp}
        config = ConfigWorkflow(str(CONFIGS / f"{kind}.json"), workflow_type=kind, **common, **settings)
        config.parser["initialize"] = ["$monai.utils.set_determinism(seed=0)"]
        config.initialize()
        return config.parser

    try:
        if name != "plain":
            keep_freed_memory()
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

        def step():
            optimizer.zero_grad()
            loss(inferer(image, network), targets).backward()
            optimizer.step()

        with FlopCounterMode(display=False) as counter:
            step()
        gflop = counter.get_total_flops() / 1e9 / len(image)
        torch.save(network.state_dict(), f"{folder}/{name}.pt")
        pictures = {"dataset_dir": f"{folder}/images", "weights": f"{folder}/{name}.pt", "load_pretrain": True}
        inference = workflow("inference", {**INFERENCE[name], **pictures})
        inference.get_parsed_content("checkpointloader")(inference.get_parsed_content("evaluator"))

        while pipe.recv() == "go":
            measured = {"threads": torch.get_num_threads(), "native_bfloat16": fast_bfloat16("cpu")}
            measured |= {"cache_s": cache_s, "gflop_per_picture": gflop}
            network.train()
            trainer.state.max_epochs = trainer.state.epoch + 1
            measured["epoch_s"] = _time(trainer.run)
            measured["step_s"] = _time(step) / len(image)
            with contextlib.redirect_stderr(sys.stdout):
                measured["inference_s"] = _time(inference.get_parsed_content("evaluator").run)
            matrix = torch.rand(2048, 2048, dtype=precision)
            measured["matrix_gflop_per_s"] = 2 * 2.048**3 / _time(lambda: matrix @ matrix)
            pipe.send(measured)
    except Exception as error:  # whatever it is, the parent has to hear of it
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def _time(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _condense(turns):
    """Return the medians over the rounds, and the step's speed in GFLOP/s beside the matrix product's."""
    median = {key: statistics.median(t[key] for t in turns) for key in turns[0] if key.endswith(("_s", "picture"))}
    speed = median["gflop_per_picture"] / median["step_s"]
    share = statistics.median(t["gflop_per_picture"] / t["step_s"] / t["matrix_gflop_per_s"] for t in turns)
    rounded = {key: round(value, 4) for key, value in median.items()}
    return {**rounded, "step_gflop_per_s": round(speed, 1), "share_of_matrix_peak": round(share, 3)}


def _ratio(results, name, what):
    """Return how many times faster than plain a setting was: median and range over the rounds."""
    ratios = [plain[what] / other[what] for plain, other in zip(results["plain"], results[name])]
    return {"median": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)]}


def _processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _report(figures):
    count = figures["pictures"]
    print(f"\n{figures['processor']}, {figures['threads']} threads, {figures['image_size']} pixels, ", end="")
    print(f"native bfloat16: {'yes' if figures['native_bfloat16'] else 'no'}, amp {figures['amp']}; ", end="")
    print(f"medians of {figures['rounds']} rounds")
    print("setting  training pictures/s  inference pictures/s  step GFLOP/s  share of matrix peak  one-off cache s")
    for name, s in figures["settings"].items():
        print(f"{name:8} {count / s['epoch_s']:19.1f} {count / s['inference_s']:21.1f} ", end="")
        print(f"{s['step_gflop_per_s']:13.1f} {s['share_of_matrix_peak']:21.0%} {s['cache_s']:16.1f}")
    for name, ratios in figures["faster_than_plain"].items():
        for what, title in (("epoch_s", "training epoch"), ("step_s", "network step"), ("inference_s", "inference")):
            low, high = ratios[what]["range"]
            print(f"{name}: {title} {ratios[what]['median']} times as fast as plain ({low} to {high})")


if __name__ == "__main__":
    try:
        fire.Fire(benchmark)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmark: {error}")
