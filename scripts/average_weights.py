"""Average the weights of several trainings that began with the same weights, or of these and of that start.

    python scripts/average_weights.py --ckpt_dirs "['runs/round_0','runs/round_1']" --output_dir runs/joint

Such a mean can be better than each of them on images of other hospitals, at no cost to inference: a model soup
(Wortsman et al., ICML 2022, https://arxiv.org/abs/2203.05482). Out: `model.pt` and `model.json` in --output_dir.
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import run


def average_weights(ckpt_dirs: tuple[Path, ...], output_dir: Path) -> None:
    """Write the mean of the weights.

    Args:
        ckpt_dirs: folders with `model.pt` and `model.json`, all of networks with the same settings.
        output_dir: folder for the mean; weights there are not replaced.

    Raises:
        ValueError: the output exists, fewer than two folders are given, or their networks differ.
    """
    import torch

    from breast_ultrasound.files import sha256
    from breast_ultrasound.weights import check_finite, load_tensors, read_settings, write_weights

    output, files = output_dir / "model.pt", [folder / "model.pt" for folder in ckpt_dirs]
    if output.is_file():
        raise ValueError(f"{output} exists; name another --output_dir, or remove it")
    if len(files) < 2:
        raise ValueError("--ckpt_dirs: give two folders or more")
    digests = [sha256(file) if file.is_file() else str(file) for file in files]
    for k, file in enumerate(files):
        if (first := digests.index(digests[k])) < k:
            raise ValueError(f"{file}: the weights of {files[first]} a second time; name other --ckpt_dirs")
    settings = [{k: v for k, v in read_settings(file).items() if k != "weights_sha256"} for file in files]
    states = [load_tensors(file) for file in files]
    for file, other, state in zip(files, settings, states):
        if no_tensor := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
            raise ValueError(f"{file}: {no_tensor[0]} is no tensor; name a folder of a training")
        check_finite(state, file)
        kinds = [{name: (tuple(value.shape), value.dtype) for name, value in s.items()} for s in (states[0], state)]
        if other != settings[0] or kinds[0] != kinds[1]:
            raise ValueError(f"{file}: another network than that of {files[0]}; only weights of one can be averaged")
        if whole := [name for name, value in state.items() if value.ndim and not value.is_floating_point()]:
            raise ValueError(f"{file}: {whole[0]} holds whole numbers, which have no mean; name weights of floats")
    means = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_weights(output, means, settings[0])
    print(f"mean of {len(files)}: {output}")


if __name__ == "__main__":
    run(average_weights, record=True)
