"""Numbers of the RD paper (Zhou et al., "Reprogramming Distillation for Medical Foundation Models",
MICCAI 2024, arXiv 2407.06504), to stand beside one's own where data, student and teacher match.

Accuracies are in per cent as printed. Each is a number of correct test images over the size of the
test set, which tells misprints: what does not fit, or contradicts another cell, is not here:
AdaptFormer's BUSI row (a copy of its BTC row) and ISIC row (a copy of RD's); VPT and VQT on BUSI
with ShuffleNet; cells of MGD that are rounded wrongly or fit no count; LPT on COVID; the averages
that contain such cells; the ablation's last row (85.71), which is no cell of the main table; and
mean gains that do not follow from the main table (all of BUSI, BTC with PMC-CLIP).

The paper trains once, at 224 px for 240 epochs; its draw of BUSI's test images is not known.
"""

from __future__ import annotations

from collections.abc import Mapping

from rdcache.report.rows import PLAIN

TEST_IMAGES: Mapping[str, int] = {
    "busi": 154,
    "btc": 394,
    "isic": 1512,
    "covid": 203,
    "chestxray": 771,
}
STUDENTS = ("resnet18", "shufflenet", "mobilenet")
TEACHERS = ("pmc-clip", "rad-densenet", "lvm-med")
RD = ("rd", "rd-paper")  # rows that the paper's RD stands beside
METRIC = "accuracy"  # the only one it has
SOURCE = "Zhou et al., MICCAI 2024; one run each, 224 px, 240 epochs"

# Table 3, plain students: dataset → accuracy of each of STUDENTS, as far as they are known here.
PLAIN_STUDENTS: Mapping[str, tuple[float, ...]] = {
    "busi": (77.92, 81.82, 80.52),
    "btc": (77.92, 78.17, 76.90),
    "isic": (70.50,),
    "covid": (75.86,),
    "chestxray": (92.87,),
}
# Table 3, RD: (dataset, student) → accuracy with each of TEACHERS.
REPROGRAMMED: Mapping[tuple[str, str], tuple[float, float, float]] = {
    ("busi", "resnet18"): (88.31, 88.31, 88.96),
    ("busi", "shufflenet"): (86.36, 85.71, 85.71),
    ("busi", "mobilenet"): (86.36, 87.01, 87.01),
    ("btc", "resnet18"): (80.71, 78.68, 81.98),
    ("btc", "shufflenet"): (79.44, 79.95, 80.46),
    ("btc", "mobilenet"): (79.70, 79.95, 82.49),
    ("isic", "resnet18"): (78.11, 77.18, 79.76),
    ("covid", "resnet18"): (81.28, 78.82, 82.27),
    ("chestxray", "resnet18"): (95.33, 94.68, 96.11),
}
# Other cells: (dataset, teacher, student, method) → accuracy.
OTHERS: Mapping[tuple[str, str, str, str], float] = {
    # Table 3: the best of the distillation baselines with ResNet-18 and LVM-Med.
    ("busi", "lvm-med", "resnet18", "hint"): 79.22,
    ("btc", "lvm-med", "resnet18", "hint"): 80.71,
    ("isic", "lvm-med", "resnet18", "hint"): 79.23,
    ("covid", "lvm-med", "resnet18", "norm"): 82.27,
    ("chestxray", "lvm-med", "resnet18", "hint"): 94.42,
    # Table 4, RD with LVM-Med.
    ("isic", "lvm-med", "shufflenet", "rd"): 78.90,
    ("covid", "lvm-med", "shufflenet", "rd"): 85.22,
    ("isic", "lvm-med", "mobilenet", "rd"): 76.79,
    ("covid", "lvm-med", "mobilenet", "rd"): 84.24,
}
# Table 3, beside the teachers' names: dataset → accuracy of each of TEACHERS, fully fine-tuned.
FINE_TUNED: Mapping[str, tuple[float, float, float]] = {
    "busi": (88.31, 86.36, 94.16),
    "btc": (80.20, 80.46, 80.71),
    "isic": (76.92, 73.41, 82.74),
    "covid": (78.82, 77.34, 83.74),
    "chestxray": (96.11, 94.55, 94.16),
}
# Ablation on COVID-CT, by the names of pipelines/ablation.yaml. That the student is ResNet-18
# follows from its counts; the teacher is not stated.
ABLATION: Mapping[tuple[str, str, str], float] = {
    ("covid", "resnet18", PLAIN): 75.86,
    ("covid", "resnet18", "direct"): 80.79,
    ("covid", "resnet18", "co-training + KD"): 82.27,
}
# Table 4: averages over four data sets and three students, LVM-Med; those without a defective cell.
PEFT_AVERAGES: Mapping[str, float] = {"melo": 78.83, "rd": 82.82}
# Table 6: mean gain of RD over the students, in points: dataset → with each of TEACHERS.
GAINS: Mapping[str, tuple[float | None, float | None, float | None]] = {
    "covid": (4.93, 6.08, 6.57),
    "btc": (None, 1.86, 3.98),
    "chestxray": (2.42, 0.77, 2.42),
    "isic": (5.80, 5.10, 6.02),
}


def published_accuracy(
    dataset: str, teacher: str, student: str, method: str, metric: str = METRIC
) -> float | None:
    """What Tables 3 and 4 have for a cell, in per cent; None where they have nothing, or nothing
    sound, or are of another metric.
    """
    if metric != METRIC or teacher not in TEACHERS or student not in STUDENTS:
        return None
    if method == PLAIN:
        plain = PLAIN_STUDENTS.get(dataset, ())
        return dict(zip(STUDENTS, plain, strict=False)).get(student)
    if method in RD and (dataset, student) in REPROGRAMMED:
        return REPROGRAMMED[dataset, student][TEACHERS.index(teacher)]
    return OTHERS.get((dataset, teacher, student, "rd" if method in RD else method))


def published_ablation(
    dataset: str, student: str, method: str, metric: str = METRIC
) -> float | None:
    """What the ablation has for one of its rows, whatever the teacher."""
    if metric != METRIC:
        return None
    return ABLATION.get((dataset, student, method))


def published_gain(dataset: str, teacher: str, method: str, metric: str = METRIC) -> float | None:
    """The mean gain of Table 6 over plain students, all three of the paper's, in points."""
    if metric != METRIC or method not in RD or teacher not in TEACHERS:
        return None
    return GAINS.get(dataset, (None, None, None))[TEACHERS.index(teacher)]


def published_fine_tuned(dataset: str, teacher: str, metric: str = METRIC) -> float | None:
    """The accuracy of the teacher itself, fully fine-tuned."""
    if metric != METRIC or teacher not in TEACHERS or dataset not in FINE_TUNED:
        return None
    return FINE_TUNED[dataset][TEACHERS.index(teacher)]
