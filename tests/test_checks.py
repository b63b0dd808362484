"""One step before any work: every option has its rule, and every item of a datalist is looked at."""

import json
import shutil

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from PIL import Image

from scripts.checks import RULES, check_command, item_problems

CONFIGS = ROOT / "bundle" / "configs"
TRAIN = ["run", "--config_file", str(CONFIGS / "train.json")]
EVALUATE = ["run", "--config_file", f"['{CONFIGS / 'train.json'}','{CONFIGS / 'evaluate.json'}']"]


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "inference_onnx"])
def test_every_option_that_is_a_plain_value_has_a_rule(name):
    content = ConfigParser.load_config_file(str(CONFIGS / f"{name}.json"))
    plain = {
        k for k, v in content.items() if isinstance(v, (bool, int, float, str)) and not str(v).startswith(("$", "%"))
    }
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


def test_files_of_one_problem_are_counted_and_not_all_named(tmp_path):
    items = [{"image": f"/nowhere/{n}.png", "label": f"/nowhere/{n}_mask.png", "class": 0} for n in range(60)]
    lines = item_problems(items, "training", ["a", "b"])
    assert len(lines) == 2 and all("60 x " in line and "and 10 more; correct the datalist" in line for line in lines)
