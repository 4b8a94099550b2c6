"""Metrics from judged answers and drawings: pure arithmetic, with a confidence interval for each share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from training.digits.instructions import POPE_SETTINGS
from training.digits.scenes import Scene
from training.evaluation.judge import Verdict

CONFIDENCE = 0.95
ATTRIBUTES = ("digit", "color", "background")
QUESTION_FAMILIES = (*ATTRIBUTES, "exists", "parity", "caption")

# What `tiny` aims at on held-out scans; what a champion must reach are the floors of params.yaml.
AIMS = {
    "draw.all_right": 0.98,
    "draw.unseen": 0.95,
    "draw.frechet_ratio": 1.8,
    "vqa.digit": 0.98,
    "vqa.color": 0.99,
    "vqa.background": 1.0,
    "pope.random": 0.97,
    "pope.popular": 0.97,
    "pope.adversarial": 0.97,
    "draw_and_describe": 0.98,
    "tokenizer.psnr": 29.5,
    "tokenizer.judge": 0.98,
}


@dataclass(frozen=True)
class Answer:
    """A question about a picture: what was expected and what was said. `setting` is POPE's, or empty."""

    family: str
    setting: str
    expected: str
    said: str
    is_unseen: bool

    @property
    def is_right(self) -> bool:
        return self.said == self.expected


@dataclass(frozen=True)
class Drawing:
    """A request for one picture: what was asked, what the judge saw, and the words around the picture."""

    family: str
    scene: Scene
    verdict: Verdict
    expected: str
    said: str
    is_unseen: bool

    @property
    def is_right(self) -> bool:
        return self.verdict.is_right(self.scene)


@dataclass(frozen=True)
class Proportion:
    """A share: `hits` of `count`."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """From 0 to 1; None where nothing was counted."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 % confidence; everything where nothing was counted."""
        if not self.count:
            return 0.0, 1.0
        bounds = binomtest(self.hits, self.count).proportion_ci(CONFIDENCE, method="wilson")
        return float(bounds.low), float(bounds.high)


def proportion_of(claims: Iterable[bool]) -> Proportion:
    """How many of these are true."""
    claims = list(claims)
    return Proportion(sum(claims), len(claims))


def question_shares(answers: Sequence[Answer]) -> dict[str, Proportion]:
    """Share of answers that are exactly right, by family; those about unseen pairs once more, apart."""
    shares = {
        family: proportion_of(answer.is_right for answer in answers if answer.family == family)
        for family in QUESTION_FAMILIES
    }
    unseen = [answer for answer in answers if answer.is_unseen]
    for family in (*ATTRIBUTES, "caption"):
        shares[f"unseen_{family}"] = proportion_of(
            answer.is_right for answer in unseen if answer.family == family
        )
    return shares


def pope_detail(answers: Sequence[Answer]) -> dict[str, dict[str, float | None]]:
    """Accuracy, precision, recall, F1 and the share of yes of each POPE setting, after arXiv:2305.10355.

    What is neither yes nor no counts as the wrong one of the two.
    """
    return {
        setting: _yes_no([answer for answer in answers if answer.setting == setting])
        for setting in POPE_SETTINGS
    }


def _yes_no(answers: Sequence[Answer]) -> dict[str, float | None]:
    wanted = [answer.expected == "Yes." for answer in answers]
    given = [
        answer.said == "Yes." if answer.said in ("Yes.", "No.") else not yes
        for answer, yes in zip(answers, wanted, strict=True)
    ]
    hits = sum(yes and said for yes, said in zip(wanted, given, strict=True))
    return {
        "accuracy": proportion_of(yes == said for yes, said in zip(wanted, given, strict=True)).value,
        "precision": hits / sum(given) if sum(given) else 0.0,
        "recall": hits / sum(wanted) if sum(wanted) else 0.0,
        "f1": 2 * hits / (sum(wanted) + sum(given)) if sum(wanted) + sum(given) else 0.0,
        "yes_rate": proportion_of(given).value,
        "neither": sum(answer.said not in ("Yes.", "No.") for answer in answers),
        "n": len(answers),
    }


def drawing_shares(drawings: Sequence[Drawing]) -> dict[str, Proportion]:
    """Share of drawings with everything right, each attribute right, unseen and seen pairs apart; of exact
    words, too.
    """

    def agrees(name: str) -> Callable[[Drawing], bool]:
        return lambda drawing: getattr(drawing.verdict, name) == getattr(drawing.scene, name)

    return {
        "all_right": proportion_of(drawing.is_right for drawing in drawings),
        **{name: proportion_of(map(agrees(name), drawings)) for name in ATTRIBUTES},
        "unseen": proportion_of(drawing.is_right for drawing in drawings if drawing.is_unseen),
        "seen": proportion_of(drawing.is_right for drawing in drawings if not drawing.is_unseen),
        "words": proportion_of(drawing.said == drawing.expected for drawing in drawings),
    }


def described_share(drawings: Sequence[Drawing]) -> Proportion:
    """Share of pictures drawn and described where the picture is right and every word is as expected."""
    described = [drawing for drawing in drawings if drawing.family == "draw_and_describe"]
    return proportion_of(drawing.is_right and drawing.said == drawing.expected for drawing in described)


def summary(answers: Sequence[Answer], drawings: Sequence[Drawing]) -> dict[str, Any]:
    """All figures that answers and drawings give, nested as in the metrics file, with their intervals."""
    questions, drawn, described = (
        question_shares(answers),
        drawing_shares(drawings),
        described_share(drawings),
    )
    detail = pope_detail(answers)
    num_unseen = sum(drawing.is_unseen for drawing in drawings)
    return {
        "draw": {**_values(drawn), "n": len(drawings), "n_unseen": num_unseen},
        "draw_and_describe": described.value,
        "vqa": {**_values(questions), "n": len(answers)},
        "pope": {setting: figures["f1"] for setting, figures in detail.items()},
        "pope_detail": detail,
        "intervals": {
            "draw": _intervals(drawn),
            "vqa": _intervals(questions),
            "draw_and_describe": list(described.interval),
        },
    }


def _values(shares: dict[str, Proportion]) -> dict[str, float | None]:
    return {name: share.value for name, share in shares.items()}


def _intervals(shares: dict[str, Proportion]) -> dict[str, list[float]]:
    return {name: list(share.interval) for name, share in shares.items()}
