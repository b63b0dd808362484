"""What remakes the project's own numbers: functions alone, called by scripts/reproduce.py."""

# External test sets by the name of their results: what tables call them, and their layout (scripts/prepare_dataset.py).
# A set that is added here is prepared, evaluated, reported and shown.
EXTERNAL = {"external": {"title": "BrEaST (external)", "layout": "breast"}}
# The columns of the evidence, in order
EVALUATIONS = {
    "cross_validation": "cross-validation",
    "testing": "test part",
    **{name: found["title"] for name, found in EXTERNAL.items()},
    "random": "`random` protocol",
}
