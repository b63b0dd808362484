"""The reference of the input check, fitted: features of training images, limits from validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from tqdm import tqdm

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import NOTICE, sha256
from breast_ultrasound.images import open_image, to_grey
from breast_ultrasound.inferers import AutocastInferer
from breast_ultrasound.input_check import Reference, fingerprint
from breast_ultrasound.predictor import Predictor

LEAST = 30  # images of a split
QUANTILE = 0.995  # of the distances of validation images
# Multiples of that distance. At BrEaST and at BUS-UCLM, unseen, the largest were 1.3 and 1.4 (study/input_check.py).
LOOK, REFUSE = 1.3, 1.5


def items_of(datalists: Sequence[Path], split: str) -> list[Path]:
    """The images of a split of some prepared sets."""
    return [file.parent / item["image"] for file in datalists for item in read_datalist(file).get(split, [])]


def embeddings(predictor: Predictor, files: Sequence[Path], name: str) -> torch.Tensor:
    """What a network makes of images, float32 (N, C)."""
    inferer, rows = AutocastInferer(predictor.inferer.amp, embedding=True), []
    for file in tqdm(files, desc=name, unit="image", disable=None):
        image = predictor.prepared(file)["image"][None].to(predictor.device)
        with torch.inference_mode():
            rows.append(inferer(image, predictor.network)["embedding"][0].cpu())
    return torch.stack(rows)


def fit(
    ckpt_dir: Path, splits: Mapping[str, Sequence[Path]], trained_on: Sequence[str], images: int
) -> tuple[dict, dict]:
    """The content of `input_check.pt`, and what there is to tell of it.

    Args:
        ckpt_dir: folder of the weights.
        splits: images by split, training and validation among them.
        trained_on: splits whose images trained.
        images: of a split, whose features are computed.

    Raises:
        ValueError: a split has fewer than `LEAST` images.
    """
    chosen = {name: splits[name][:: -(-len(splits[name]) // images) or 1] for name in ("training", "validation")}
    for name, files in chosen.items():
        if len(files) < LEAST:
            raise ValueError(f"{name}: {len(files)} images, at least {LEAST} are needed; name further --datalists")
    predictor = Predictor(ckpt_dir=str(ckpt_dir))
    found = {name: embeddings(predictor, files, name) for name, files in chosen.items()}
    seen = [file for name in trained_on for file in splits[name]]
    marks = [fingerprint(to_grey(open_image(file))) for file in tqdm(seen, desc="fingerprints", disable=None)]
    content = {
        "notice": NOTICE,
        "weights_sha256": sha256(ckpt_dir / "model.pt"),
        "depths": depths_of(predictor, found["training"]),
        "fingerprints": torch.from_numpy(np.frombuffer(b"".join(sorted(set(marks))), np.uint8).reshape(-1, 32).copy()),
        "fitted_on": {name: len(files) for name, files in chosen.items()},
    }
    distances = np.array([Reference(content).distances(row) for row in found["validation"]])
    for depth, limit in zip(content["depths"], np.quantile(distances, QUANTILE, axis=0)):
        depth |= {"look": float(LOOK * limit), "refuse": float(REFUSE * limit)}
    limits = [{name: depth[name] for name in ("look", "refuse")} for depth in content["depths"]]
    return content, {**content["fitted_on"], "fingerprints": len(content["fingerprints"]), "distances": limits}


def depths_of(predictor: Predictor, features: torch.Tensor) -> list[dict]:
    """Mean and whitening of each of the depths whose features (N, C) are joined in an embedding."""
    with torch.inference_mode():
        maps = predictor.network.feature_maps(torch.zeros(1, 1, 128, 128, device=predictor.device))
    depths = []
    for values in features.split([maps["x2"].shape[1], maps["x3"].shape[1]], dim=1):
        # Shrunk: there are not many more images than features
        fitted = LedoitWolf().fit(values.double().numpy())
        whitening = np.linalg.cholesky(np.linalg.inv(fitted.covariance_)).T
        depths.append(
            {"mean": torch.tensor(fitted.location_).float(), "whitening": torch.tensor(whitening.copy()).float()}
        )
    return depths
