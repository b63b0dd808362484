"""What remakes the project's own numbers: functions alone, called by study/dodo.py."""

from pathlib import Path

STUDY = Path(__file__).resolve().parent
RESULTS = STUDY / "results"
EVERYTHING = "training+validation+testing"  # all images of a hospital that weights have not seen

# The hospitals of training by their prepared folders, and the BasicUNet that ships beside the released network
SITES = {"clean": "BUSI", "bus_bra": "BUS-BRA", "bus_uclm": "BUS-UCLM"}
SMALL = STUDY.parent / "bundle/models/small"
# External test sets by the name of their results: what tables call them, and their layout (scripts/prepare.py).
# A set that is added here is prepared, evaluated, reported and shown.
EXTERNAL = {"external": {"title": "BrEaST (not trained on)", "layout": "breast_published"}}
# Leave one site out: all images of a hospital by weights that were trained on the two others. Results, what tables
# call them, folder of the weights, the set tested on
UNSEEN = {
    "busi_unseen": ("BUSI, left out", "without_busi", "clean"),
    "bus_bra_unseen": ("BUS-BRA, left out", "without_bus_bra", "bus_bra"),
    "bus_uclm_unseen": ("BUS-UCLM, left out", "without_bus_uclm", "bus_uclm"),
}
LEFT_OUT = {weights: site for _, weights, site in UNSEEN.values()}
# What a hospital more brings at BrEaST: the released weights against those without BUS-UCLM
FEWER = {"external_without_bus_uclm": ("BrEaST, without BUS-UCLM", "without_bus_uclm", "external")}
# The small network, which has seen BUSI and BUS-BRA, where it has seen nothing
SMALL_UNSEEN = {
    "small_bus_uclm": ("BUS-UCLM, small network", "bus_uclm"),
    "small_external": ("BrEaST, small network", "external"),
}
# Whose difference a sentence of the documents tells: an evaluation, and what it is compared with on the same images
COMPARISONS = (
    ("bus_uclm_unseen", "small_bus_uclm"),
    ("external_without_bus_uclm", "small_external"),
    ("external", "external_without_bus_uclm"),
)
# What a datalist says of an image by which subgroups are told, where it does
SUBGROUP_COLUMNS = ("split", "device", "birads")
# The metrics of short tables
BRIEF = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_malignant")
# What a result says of how it was made: weights, images with their labels, options that matter, code
SIGNATURE = ("weights_sha256", "images_sha256", "image_size")
SIGNATURE += ("mask_threshold", "smallest_fraction", "component_threshold", "commit")
# The columns of the evidence, in order; those of the card
HOME = {
    "cross_validation": "BUSI, cross-validation",
    "testing": "BUSI, testing split",
    "bus_bra": "BUS-BRA, testing split",
    "bus_uclm": "BUS-UCLM, testing split",
}
AWAY = {**{name: title for name, (title, _, _) in UNSEEN.items()}, **{n: e["title"] for n, e in EXTERNAL.items()}}
FURTHER = {name: title for name, (title, *_) in (FEWER | SMALL_UNSEEN).items()}
EVALUATIONS = {**HOME, **AWAY, **FURTHER}
