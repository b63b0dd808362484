"""One step before any work: every option has its rule, and every item of a datalist is looked at."""

import json
import logging
import shlex
import shutil
from collections import namedtuple

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image, ImageOps

from breast_ultrasound import checks
from breast_ultrasound.checks import RULES, check_command, item_problems
from breast_ultrasound.cli import bundle_arguments
from breast_ultrasound.command import check_overrides
from conftest import ROOT

CONFIGS = ROOT / "bundle" / "configs"
TRAIN = ["run", "--config_file", str(CONFIGS / "train.json")]
INFER = ["run", "--config_file", str(CONFIGS / "inference.json")]
EVALUATE = ["run", "--config_file", f"['{CONFIGS / 'train.json'}','{CONFIGS / 'evaluate.json'}']"]


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "inference_onnx"])
def test_every_option_that_is_a_plain_value_has_a_rule(name):
    content = ConfigParser.load_config_file(str(CONFIGS / f"{name}.json"))
    kinds = (bool, int, float, str)
    plain = {k for k, v in content.items() if isinstance(v, kinds) and not str(v).startswith(("$", "%", "@"))}
    options = {k for k in plain if "#" not in k and k.isidentifier()} - {"is_not_rank0"}  # of the overlays for several
    assert options <= set(RULES)


def test_all_wrong_options_and_items_are_named_at_once(tiny_prepared, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(tiny_prepared, folder)
    datalist = json.loads((folder / "datalist.json").read_text())
    first, _, third = datalist["training"][:3]
    (folder / first["image"]).unlink()
    Image.open(folder / third["label"]).resize((5, 5), Image.Resampling.NEAREST).save(folder / third["label"])
    datalist["validation"] = []
    (folder / "datalist.json").write_text(json.dumps(datalist))
    options = ["--epochs", "abc", "--learning_rate=0", "--resume", "maybe", "--dataset_dir", str(folder)]
    with pytest.raises(ValueError, match="^6 problems:\n") as error:
        check_command([*TRAIN, *options])
    text = str(error.value)
    for words in (
        "--epochs abc: give a whole number of 1 or more",
        "--learning_rate 0: give a number above 0",
        "--resume maybe: give True or False",
        f"training: 1 x image missing: {folder / first['image']}; correct the datalist",
        f"training: 1 x label of another size than its image: {folder / third['label']} (5 x 5",
        f"{folder}/datalist.json: no item in validation",
    ):
        assert words in text, text


def test_workers_need_shared_memory_for_their_images(tiny_prepared, monkeypatch):
    used = namedtuple("Usage", "free")
    options = ["--dataset_dir", str(tiny_prepared), "--num_workers"]
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: used(65536))
    for command in (TRAIN, INFER):
        with pytest.raises(ValueError, match="--num_workers 2: /dev/shm has 64 kB left .*; pass --num_workers 0, or"):
            check_command([*command, *options, "2"])
        check_command([*command, *options, "0"])
    onnx = f"['{CONFIGS / 'inference.json'}','{CONFIGS / 'inference_onnx.json'}']"
    for workers in ("0", "2"):
        with pytest.raises(ValueError, match="^/nowhere.onnx: missing"):
            check_command(["run", "--config_file", onnx, *options, workers, "--onnx_file", "/nowhere.onnx"])
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: used(64 * 2**20))  # docker's default
    check_command([*TRAIN, *options, "2"])


def test_the_split_that_trains_is_the_one_that_is_checked(tiny_prepared, tmp_path):
    datalist = json.loads((tiny_prepared / "datalist.json").read_text())
    (tmp_path / "datalist.json").write_text(json.dumps(datalist | {"training": []}))
    options = ["--dataset_dir", str(tiny_prepared), "--datalist", str(tmp_path / "datalist.json")]
    check_command([*TRAIN, *options, "--train_split", "testing"])
    (tmp_path / "datalist.json").write_text(json.dumps(datalist | {"testing": []}))
    with pytest.raises(ValueError, match="datalist.json: no item in testing"):
        check_command([*TRAIN, *options, "--train_split", "testing"])


def test_a_right_command_passes_and_an_evaluation_is_asked_for_its_own_split_alone(tiny_prepared, tmp_path):
    check_command([*TRAIN, "--dataset_dir", str(tiny_prepared)])
    datalist = json.loads((tiny_prepared / "datalist.json").read_text())
    (tmp_path / "datalist.json").write_text(json.dumps(datalist | {"training": [], "validation": []}))
    options = ["--dataset_dir", str(tiny_prepared), "--datalist", str(tmp_path / "datalist.json")]
    check_command([*EVALUATE, *options])
    (tmp_path / "datalist.json").write_text(json.dumps(datalist | {"testing": []}))
    with pytest.raises(ValueError, match="datalist.json: no item in testing"):
        check_command([*EVALUATE, *options])


def test_an_option_that_the_network_in_force_has_not_is_refused(tiny_prepared):
    features = ["--dataset_dir", str(tiny_prepared), "--features", "[8,8,16,16,32,8]"]
    check_command([*TRAIN, *features])
    pretrained = f"['{CONFIGS / 'train.json'}','{CONFIGS / 'train_pretrained.json'}']"
    for command in ([*TRAIN[:-1], pretrained], [*EVALUATE, "--ckpt_dir", str(ROOT / "bundle/models")]):
        with pytest.raises(ValueError, match="--features: .*PretrainedUNetClassifier, has none; leave it out"):
            check_command([*command, *features])


def test_files_of_one_problem_are_counted_and_not_all_named(tmp_path):
    items = [{"image": f"/nowhere/{n}.png", "label": f"/nowhere/{n}_mask.png", "class": 0} for n in range(60)]
    lines = item_problems(items, "training", ["a", "b"])
    assert len(lines) == 2 and all("60 x " in line and "and 10 more; correct the datalist" in line for line in lines)


def changed(source, folder, change):
    """A copy of a prepared folder whose datalist is changed."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "datalist.json").read_text())
    change(content)
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "change, command, told",
    [
        (lambda d: d["validation"].append(d["training"][0]), TRAIN, "1 images in both validation and training ("),
        (lambda d: d["testing"].append(d["training"][0]), EVALUATE, "1 images in both testing and training ("),
        (lambda d: d["testing"].append(d["testing"][0]), EVALUATE, "1 images twice or more often in testing ("),
        (
            lambda d: [d[split][0].update(group="P 7") for split in ("validation", "training")],
            TRAIN,
            "1 patients in both validation and training (P 7)",
        ),
        (lambda d: d.update(testing=d["testing"][2:]), EVALUATE, "no image of normal in testing;"),
    ],
    ids=["training in validation", "training in testing", "twice", "patient", "class"],
)
def test_what_makes_metrics_better_or_emptier_than_they_seem_is_told(
    change, command, told, tiny_prepared, tmp_path, caplog
):
    folder = changed(tiny_prepared, tmp_path / "set", change)
    check_command([*command, "--dataset_dir", str(folder)])
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and told in caplog.text, caplog.text
    caplog.clear()
    check_command([*command, "--dataset_dir", str(tiny_prepared)])
    assert not caplog.records


@pytest.mark.parametrize("split, command", [("validation", TRAIN), ("testing", EVALUATE)])
def test_near_duplicates_across_splits_are_told_and_the_time_for_that_is_bounded(
    split, command, tiny_prepared, tmp_path, caplog, monkeypatch
):
    def add_copy(content):
        item = content["training"][0]
        for key, change in (("image", lambda pixels: 250 - pixels // 2 * 2), ("label", np.copy)):
            pixels = np.asarray(Image.open(tiny_prepared / item[key]))
            Image.fromarray(change(pixels)).save(tmp_path / "set" / f"{key}s" / "copy.png")
        content[split].append({**item, "image": "images/copy.png", "label": "labels/copy.png"})

    folder = changed(tiny_prepared, tmp_path / "set", add_copy)
    image = Image.open(folder / "images/copy.png")
    check_command([*command, "--dataset_dir", str(folder)])
    assert not caplog.records  # the negative of an image is another one
    ImageOps.mirror(ImageOps.invert(image)).save(folder / "images/copy.png")
    check_command([*command, "--dataset_dir", str(folder)])
    told = f"1 near-duplicates in both {split} and training (copy.png = training normal (1).png): metrics look better"
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and told in caplog.text
    caplog.clear()
    monkeypatch.setattr("breast_ultrasound.checks.LOOKING", 0)
    check_command([*EVALUATE, "--dataset_dir", str(tiny_prepared)])
    assert "6 of 6 images of training were not searched for near-duplicates (not to be read, or more than 0 s)" in (
        caplog.text
    )


@pytest.mark.parametrize("names", ["normal", {"0": "normal", "1": "benign"}, [1, 2]])
def test_class_names_of_a_datalist_are_a_list_of_names(names, tiny_prepared, tmp_path):
    folder = changed(tiny_prepared, tmp_path / "set", lambda content: content.update(class_names=names))
    with pytest.raises(ValueError, match="datalist.json: class_names .* is no list of names"):
        check_command([*TRAIN, "--dataset_dir", str(folder)])


AWKWARD = [
    "run #2",
    "run#3",
    "(pics)",
    "a, b",
    "'quoted'",
    "@here",
    "%there",
    "$HOME",
    "2024",
    "o'brien",
    'say "a"',
    "é",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_path_arrives_as_it_was_typed_or_is_refused_with_a_spelling_that_does(name):
    start = [*INFER, "--output_dir"]
    try:
        if name != "$HOME":  # an expression, as MONAI has it
            assert check_overrides([*start, name]).get_parsed_content("output_dir") == name
    except ValueError as error:
        assert str(error).startswith(f"--output_dir {name}: MONAI would read another path; spell it --output_dir ")
        spelt = shlex.split(str(error).split("spell it --output_dir ")[1].split(", or use")[0])[0]
        assert check_overrides([*start, spelt]).get_parsed_content("output_dir") == name
    ids = {"output_dir": name, "datalist": {f"/x/{name}": 1}}
    parser = check_overrides(bundle_arguments("training", "train", CONFIGS.parent, **ids)[2:])
    assert {key: parser.get_parsed_content(key) for key in ids} == ids


def test_config_files_lie_in_folders_of_any_name(tmp_path):
    for name in AWKWARD:
        folder = tmp_path / name / "configs"
        folder.mkdir(parents=True)
        shutil.copy(CONFIGS / "inference.json", folder)
        arguments = bundle_arguments("run", "inference", tmp_path / name)[2:]
        parser = check_overrides(arguments)
        assert parser.get_parsed_content("ckpt_dir") == f"{tmp_path / name}/models"
