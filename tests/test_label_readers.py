"""Several readers: how well they agree on labels worked out by hand, which label trains, who reads what."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric
from scipy import ndimage

from lib.consensus import common_class, dice, majority
from lib.errors import RequestError
from lib.readers import Agreement, Answer, adjudicate, settle
from lib.study import Study, read_study, slug
from lib.summary import fleiss_kappa, hd95, interval, summary


class Labels:
    """A datastore of labels in memory; masks are columns of 4 x 10 pixels."""

    def __init__(self):
        self.kept, self.ts, self.folder = {}, 0, tempfile.TemporaryDirectory()

    def give(self, image, reader, columns, given="", **info):
        """A reader's label: columns of the mask, or None, and a class."""
        mask = np.zeros((4, 10), bool)
        mask[:, columns or slice(0, 0)] = True
        self.keep_label(
            image, mask, f"reader_{reader}", {"reader": reader, **({"class": given} if given else {}), **info}
        )
        return mask

    def keep_label(self, image, mask, tag, info, anew=False):
        self.ts += 1
        file = Path(self.folder.name) / f"{image} {tag}"
        file.touch()
        self.kept[image, tag] = SimpleNamespace(info={**info, "ts": self.ts}, file=str(file), mask=lambda: mask)

    def remove_label(self, image, tag):
        del self.kept[image, tag]

    def tags(self):
        return sorted({tag for _, tag in self.kept})

    def label(self, image, tag):
        return self.kept.get((image, tag))

    def labels(self, tag):
        return {image: kept for (image, found), kept in sorted(self.kept.items()) if found == tag}


def pairs(store):
    """What is known of each two readers."""
    return Agreement().pairs({tag: store.labels(tag) for tag in store.tags()})


def test_readers_whose_masks_do_not_touch_differ_most():
    store = Labels()
    first = {
        "alike": (slice(0, 5), "benign"),
        "apart": (slice(0, 5), "benign"),
        "half": (slice(0, 4), "benign"),
        "missed": (slice(0, 4), "benign"),
        "no lesion": (None, "normal"),
        "other class": (slice(0, 5), "malignant"),
    }
    second = {
        "alike": (slice(0, 5), "benign"),
        "apart": (slice(5, 10), "benign"),  # Dice 0
        "half": (slice(2, 6), "benign"),  # Dice 0.5
        "missed": (None, "benign"),  # Dice 0
        "no lesion": (None, "normal"),
        "other class": (slice(0, 5), "benign"),  # Dice 1
    }
    for reader, labels in (("a", first), ("b", second)):
        for image, (columns, given) in labels.items():
            store.give(image, reader, columns, given)
    store.give("dark", "a", slice(0, 5), "benign")
    store.give("dark", "b", None, not_readable=True)  # no answer to compare
    store.give("doubt", "a", slice(0, 5), "benign")
    store.give("doubt", "b", slice(0, 5), class_unknown=True)  # an outline, but no class
    (pair,) = pairs(store)
    assert pair["differing"] == ["apart", "missed", "half", "doubt", "other class"]
    assert pair["images"] == 7 and pair["dice"] == pytest.approx((1 + 0 + 0.5 + 0 + 1 + 1) / 6)
    # Cohen's kappa by hand, of the six images of two classes: 5 alike; by chance (4/6 * 5/6 + 1/6 * 1/6 + 1/6 * 0)
    chance = (4 * 5 + 1 * 1) / 36
    assert pair["kappa"] == pytest.approx((5 / 6 - chance) / (1 - chance))


def test_pairs_without_a_common_image_are_left_out_and_one_class_has_no_kappa():
    store = Labels()
    for reader, image in (("a", "x"), ("b", "x"), ("c", "y")):
        store.give(image, reader, slice(0, 5), "benign")
    (pair,) = pairs(store)
    assert (pair["first"], pair["second"]) == ("a", "b")
    assert pair["kappa"] is None and pair["dice"] == 1 and pair["differing"] == []


def test_masks_are_read_once_as_long_as_their_files_stay():
    store, read = Labels(), []
    for reader in "ab":
        mask = store.give("x", reader, slice(0, 5), "benign")
        store.kept["x", f"reader_{reader}"].mask = lambda mask=mask: read.append(1) or mask
    agreement = Agreement()
    found = {tag: store.labels(tag) for tag in store.tags()}
    assert agreement.pairs(found) == agreement.pairs(found) and len(read) == 2
    os.utime(found["reader_a"]["x"].file, ns=(0, 0))
    agreement.pairs(found)
    assert len(read) == 4


def test_the_first_label_trains_as_long_as_nobody_differs():
    store = Labels()
    store.give("x", "a", slice(0, 5), "benign")
    settle(store, "x")
    final = store.label("x", "final")
    assert final.info["class"] == "benign" and (final.info["source"], final.info["reader"]) == ("reader", "a")
    store.give("x", "b", slice(0, 5), "benign")
    settle(store, "x")
    assert store.label("x", "final").info["reader"] == "a"
    store.give("x", "c", slice(5, 9), "benign")  # elsewhere
    settle(store, "x")
    assert store.label("x", "final") is None
    store.give("x", "c", slice(0, 5), "benign")  # has thought better of it
    settle(store, "x")
    assert store.label("x", "final").info["reader"] == "a"
    store.give("y", "a", None, not_readable=True)
    settle(store, "y")
    assert store.label("y", "final") is None


def test_an_unknown_class_trains_the_outline():
    store = Labels()
    store.give("x", "a", slice(0, 5), class_unknown=True)
    settle(store, "x")
    final = store.label("x", "final")
    assert final.mask().any() and "class" not in final.info


def test_the_final_label_says_where_it_comes_from_and_stays():
    store = Labels()
    masks = [store.give("x", reader, slice(start, start + 5), "benign") for reader, start in zip("abc", (0, 2, 6))]
    said = Answer.model_validate({"class": "benign", "submission": "1"})
    kept = adjudicate(store, "x", "chief", said, masks[1])
    assert (kept["source"], kept["reader"], kept["adjudicator"]) == ("reader", "b", "chief")
    again = Answer.model_validate({"class": "benign", "submission": "2", "replaces": "0"})
    with pytest.raises(RequestError, match="another window"):
        adjudicate(store, "x", "chief", again, masks[1])
    again = again.model_copy(update={"replaces": "1"})
    kept = adjudicate(store, "x", "chief", again, majority(masks))
    assert kept["source"] == "majority" and kept["readers"] == ["a", "b", "c"]
    store.give("x", "a", slice(5, 9), "benign")
    settle(store, "x")
    assert store.label("x", "final").info["source"] == "majority"


@pytest.mark.parametrize(
    "said, message",
    [({}, "no class"), ({"class": "benign", "not_readable": True}, "no class"), ({"class_unknown": True}, "outline")],
)
def test_answers_that_say_nothing_or_two_things_are_refused(said, message):
    with pytest.raises(RequestError, match=message):
        adjudicate(Labels(), "x", "chief", Answer.model_validate(said), np.zeros((4, 10), bool))


def test_majority_is_more_than_half_and_a_class_needs_a_lead():
    masks = [np.array([[a, b, c]], bool) for a, b, c in ((1, 1, 0), (1, 0, 0), (1, 1, 1))]
    assert majority(masks).tolist() == [[True, True, False]]
    assert majority(masks[:2]).tolist() == [[True, False, False]]
    assert dice(masks[0], masks[1]) == pytest.approx(2 / 3) and dice(masks[0] & False, masks[0] & False) is None
    assert common_class([{"class": "benign"}, {"class": "benign"}, {"class": "malignant"}]) == "benign"
    assert common_class([{"class": "benign"}, {"class": "malignant"}]) == "" == common_class([{}])


IMAGES = [f"case {number}" for number in range(50)]


def test_each_reader_has_the_exact_share_without_suggestion_and_no_image_is_withheld_from_all():
    study = Study(readers={"a": "reader", "b": "reader", "c": "reader"})
    withheld = {name: {i for i in IMAGES if study.withheld(name, i, IMAGES, 0.3)} for name in "abc"}
    assert {len(images) for images in withheld.values()} == {15}
    assert not withheld["a"] & withheld["b"] & withheld["c"] and len(set.union(*withheld.values())) >= 44
    for share, count in ((0, 0), (0.1, 5), (1, 50)):
        for name in ("anna", "Dr. Müller", "somebody"):
            assert sum(Study().withheld(name, image, IMAGES, share) for image in IMAGES) == count


def test_images_are_parted_among_readers_but_for_those_that_all_read():
    study = Study(readers={"a": "reader", "b": "reader", "c": "adjudicator"}, overlap=0.2)
    first, second = study.assigned("a", IMAGES), study.assigned("b", IMAGES)
    assert len(set(first) & set(second)) == 10 and set(first) | set(second) == set(IMAGES)
    assert len(first) == len(second) == 30 and first == sorted(first)
    assert study.assigned("c", IMAGES) == IMAGES == Study().assigned("a", IMAGES)
    hidden = study.model_copy(update={"hide_names": True}).assigned("a", IMAGES)
    gold = set(IMAGES[:5])
    assert gold <= set(study.assigned("a", IMAGES, gold)) & set(study.assigned("b", IMAGES, gold))
    assert set(study.assigned("a", IMAGES, gold)) == set(first) | gold
    assert set(hidden) == set(first) and hidden != first  # their order tells as much as their names


def test_any_name_is_a_folders_name():
    assert slug("anna-2") == "anna-2"
    names = ["Dr. Müller", "Dr. Muller", "dr muller", "Анна", "李", "../x", "a b", "x" * 80]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(set(s) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for s in slugs)
    assert slug("Dr. Müller").startswith("Dr-Muller-") and max(map(len, slugs)) <= 50


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "Invalid JSON"),
        ('{"readers": {"anna": "boss"}}', "readers.anna: Input should be 'reader' or 'adjudicator'"),
        ('{"reader": {}}', "reader: Extra inputs are not permitted"),
        ('{"overlap": 2}', "overlap: Input should be less than or equal to 1"),
        ('{"readers": {" anna": "reader"}}', "is no name"),
        ('{"readers": {"anna": "reader", "Anna": "reader"}}', "too much alike"),
    ],
)
def test_a_wrong_study_is_named(tmp_path, content, message):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match="study.json: ") as error:
        read_study(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_a_study_everybody_may_do_everything(tmp_path):
    assert read_study(tmp_path) == Study() and Study().role("anyone") == "adjudicator"
    assert Study(readers={"anna": "reader"}).role("bob") is None


def test_fleiss_kappa_is_that_of_the_worked_example():
    table = "0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"
    counts = [list(map(int, row.split())) for row in table.split("/")]
    said = [[name for name, count in zip("abcde", row) for _ in range(count)] for row in counts]
    found = fleiss_kappa(said)
    assert found["mean"] == pytest.approx(0.210, abs=5e-4) and found["n"] == 10
    assert 0 < found["low"] < found["mean"] < found["high"] < 0.5
    assert fleiss_kappa([["a", "a"], ["a", "a"]])["mean"] is None is fleiss_kappa([])["mean"]
    assert fleiss_kappa([["a", "a"], ["b", "b"]]) == {"n": 2, "mean": 1, "low": None, "high": None}


def test_hd95_is_monais():
    random = np.random.default_rng(0)
    metric = HausdorffDistanceMetric(include_background=True, percentile=95)
    for _ in range(10):
        pair = [ndimage.gaussian_filter(random.normal(size=(40, 60)), 3) > 0.05 for _ in range(2)]
        tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in pair]
        assert hd95(*pair) == pytest.approx(float(metric(*tensors)), abs=1e-4)
    assert hd95(pair[0], pair[0] & False) is None


def test_a_summary_counts_first_answers_and_pairs_times_by_image(tmp_path):
    store = Labels()
    for number in range(4):
        for reader in "ab":
            store.give(f"{number}", reader, slice(0, 5), "benign" if number % 2 else "malignant")
    rows = [("a", 0, "shown", 0, 4), ("b", 0, "withheld", 0, 9), ("a", 1, "withheld", 0, 8), ("b", 1, "shown", 0, 5)]
    rows += [("a", 0, "shown", 1, 100)]  # a second submission is not a second reading
    lines = [f"{reader},{image},0,{revision},{way},{s}" for reader, image, way, revision, s in rows]
    (tmp_path / "annotation_log.csv").write_text("\n".join(["reader,image,again,revision,suggestion,seconds", *lines]))
    found = summary({tag: store.labels(tag) for tag in store.tags()}, tmp_path)
    assert found["dice"] == {"n": 4, "mean": 1.0, "low": None, "high": None} and found["kappa"]["mean"] == 1
    assert found["seconds"]["shown"]["mean"] == 4.5 and found["seconds"]["withheld"]["n"] == 2
    assert found["saved"]["mean"] == 4 and found["saved"]["n"] == 2
    few = interval([1.0, 2.0, 4.0, 3.0])
    assert few["low"] < few["mean"] == 2.5 < few["high"]
