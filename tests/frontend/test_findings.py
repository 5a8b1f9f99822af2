"""The sentence on top of the overview: what needs a look, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from root_dash.frontend.findings import findings, headline, rule_words, said, when
from root_dash.frontend.judgement import Judgement
from root_dash.frontend.panels.overview.verdicts import FOLDED, PANEL, SHOWN, words
from root_dash.frontend.theme import LIGHT
from root_dash.health import RULES, Verdict
from root_dash.health.baseline import OPENING
from root_dash.records import Layer, Run
from tests.frontend.test_layout import components

LAYERS = [Layer(f"blocks.{at}.<b>q</b>", (4, 4), "root", at, id=10 + at) for at in range(3)]
RUN = Run("u", "a run", 0.0, id=7, frames=240, last_step=240)


def verdict(id: int, layer: int | None = 0, severity: Any = "warning", since: int = 120, **how: Any) -> Verdict:
    """Return a verdict that lasts."""
    rule = how.pop("rule", "heavy-tails")
    text = how.pop("text", f"{'' if layer is None else LAYERS[layer].name + ': '}kurtosis is 9, since step {since:,}.")
    return Verdict(id, layer, rule, severity, since, text, **how)


def card(verdicts: Sequence[Verdict], run: Run = RUN) -> Any:
    """Return the card of findings."""
    return PANEL.draw(LIGHT, run=run, layers=LAYERS, judged=Judgement("stored", verdicts)).body


def text_of(tree: Any) -> str:
    """Return all words of a tree of components."""
    if isinstance(tree, list | tuple):
        return " ".join(text_of(part) for part in tree)
    return tree if isinstance(tree, str) else text_of(getattr(tree, "children", None) or "")


def test_the_worst_comes_first_and_then_the_earliest() -> None:
    """A critical finding stands above a warning that began before it; notes and what has ended stand apart."""
    found = findings(
        [
            verdict(1, since=50),
            verdict(2, 1, "critical", since=90),
            verdict(3, 2, since=40),
            verdict(4, 2, "note"),
            verdict(5, 2, "critical", since=10, until=12),
        ]
    )
    assert [one.verdict.id for one in found.now] == [2, 3, 1]
    assert [one.verdict.id for one in found.earlier] == [5]
    assert [one.verdict.id for one in found.notes] == [4]
    assert found.worst == "critical"
    assert found.sick == (1, 2, 0)


def test_what_follows_from_a_verdict_hangs_below_it_however_deep() -> None:
    """Whatever explains a verdict that is explained itself, the verdicts stand below the one without a cause."""
    found = findings([verdict(1), verdict(2, 1, under=1), verdict(3, 2, under=2, since=110), verdict(4, 2, under=99)])
    assert [(one.verdict.id, [below.id for below in one.below]) for one in found.now] == [(4, []), (1, [3, 2])] or [
        (one.verdict.id, [below.id for below in one.below]) for one in found.now
    ] == [(1, [3, 2]), (4, [])]


def test_a_finding_lasts_while_what_follows_from_it_lasts() -> None:
    """The cause may be over while the run is still ill; a note below does not keep a finding alive."""
    over = verdict(1, None, until=130)
    assert findings([over, verdict(2, under=1)]).now
    assert findings([over, verdict(2, severity="note", under=1)]).earlier


@pytest.mark.parametrize(
    ("verdicts", "layers", "said"),
    [
        ([], 35, "All 35 layers are within their own range"),
        ([], 1, "The layer is within its range"),
        ([], 0, "No layers yet"),
        ([verdict(1)], 35, "1 of 35 layers needs a look"),
        ([verdict(1), verdict(2, 1), verdict(3, 1, rule="dead-layer")], 35, "2 of 35 layers need a look"),
        ([verdict(1, None)], 35, "The whole run needs a look"),
        ([verdict(1, None), verdict(2, 1)], 35, "The whole run needs a look, and 1 of 35 layers needs a look"),
        ([verdict(1, until=130)], 35, "No layer needs a look now"),
        ([verdict(1, severity="note")], 35, "All 35 layers are within their own range"),
    ],
)
def test_the_headline_counts_layers(verdicts: list[Verdict], layers: int, said: str) -> None:
    """A layer counts once, the run counts apart, and notes need no look."""
    assert headline(findings(verdicts), layers) == said


def test_the_hint_says_what_the_headline_rests_on() -> None:
    """Steps, healthy layers, and why nothing can be said yet."""
    none = findings([])
    assert words(RUN, 3, none) == ("All 3 layers are within their own range", "240 steps")
    assert words(RUN, 3, findings([verdict(1)]))[1] == "2 healthy · 240 steps"
    spread = findings(
        [verdict(1), verdict(2, 1, "note", under=1), verdict(3, 2, under=1, until=9), verdict(4, 0, under=1)]
    )
    assert words(RUN, 3, spread)[1] == "1 layer ill after it · 1 healthy · 240 steps"
    early = Run("u", "", 0.0, frames=OPENING - 1, last_step=9)
    assert words(early, 3, none)[0] == "Nothing is wrong with 3 layers so far"
    empty = Run("u", "", 0.0)
    assert words(empty, 3, none) == ("Nothing recorded yet", "")
    assert words(replace(empty, ended_at=1.0), 3, none)[0] == "Nothing was recorded"
    assert words(RUN, 3, none, "unjudged")[0] == "This run is not judged yet"
    assert words(RUN, 3, none, "pending")[0] == "This run is being judged"
    assert "more may be found" in words(RUN, 3, findings([verdict(1)]), "pending")[1]
    assert words(RUN, 3, findings([verdict(1)]), "unjudged")[0] == "1 of 3 layers needs a look"


def test_every_finding_names_its_layer_and_leads_to_the_onset() -> None:
    """Name, rule in words, since when, the sentence, and a link to the layer at its first sick step."""
    tree = card([verdict(1, 1, "critical", since=1200)])
    said = text_of(tree)
    for part in (LAYERS[1].name, "heavy tails", "since step 1,200", "Kurtosis is 9."):
        assert part in said
    links = {getattr(part, "href", None) for part in components(tree)} - {None}
    assert links == {"/r/7/l/11?step=1200"}
    assert [part.className for part in components(tree) if type(part).__name__ == "Article"] == ["verdict critical"]
    assert tree.to_plotly_json()["props"]["data-worst"] == "critical"


def test_a_healthy_run_is_one_line() -> None:
    """No list, no empty box; earlier findings are folded, and open if nothing else is to be said."""
    assert [type(part).__name__ for part in components(card([]))] == ["Section", "Div", "H1", "Span"]
    past = card([verdict(1, until=130)])
    folds = [part for part in components(past) if type(part).__name__ == "Details"]
    assert [(fold.open, text_of(fold.children[0])) for fold in folds] == [(True, "1 earlier finding")]
    assert "from step 120 to 130" in text_of(past)


def test_what_follows_is_folded_and_candidates_are_links() -> None:
    """One line for each verdict below, and a link for each layer of which one is the cause."""
    tree = card([verdict(1, None, candidates=(0, 2)), verdict(2, 1, under=1)])
    said = text_of(tree)
    assert "1 finding that follows from it" in said
    assert "One of" in said
    links = [part.href for part in components(tree) if getattr(part, "href", None)]
    assert {"/r/7/l/10?step=120", "/r/7/l/12?step=120", "/r/7/l/11?step=120"} == set(links)


def test_many_findings_are_folded() -> None:
    """The page stays a page: five findings, and the rest behind a line that counts them."""
    tree = card([verdict(at, at % 3, since=at) for at in range(1, 31)])
    assert [text_of(part) for part in components(tree) if type(part).__name__ == "Summary"] == ["25 more"]


def test_a_fold_is_bounded_and_says_what_it_leaves_out() -> None:
    """However long a run was sick, the page has a bounded number of rows."""
    tree = card([verdict(at, at % 3, since=at) for at in range(1, 1501)])
    assert sum(type(part).__name__ == "Article" for part in components(tree)) == SHOWN + FOLDED
    assert f"and {1500 - SHOWN - FOLDED:,} more: root-dash diagnose --run 7 lists them" in text_of(tree)


def test_a_sentence_does_not_repeat_what_stands_beside_it() -> None:
    """The layer's name, the onset and the verdict above are told by the row itself."""
    one = verdict(1, text="blocks.0.<b>q</b>: norm is 3; it follows from verdict 2, heavy-tails of x since step 1.")
    assert said(one, LAYERS[0].name) == "Norm is 3."
    assert said(verdict(1, None, text="3 layers at once jumped, since step 120; the loss too."), None) == (
        "3 layers at once jumped; the loss too."
    )


def test_rules_and_steps_are_words() -> None:
    """No rule is shown with dashes; a finding of one step says so."""
    assert not any("-" in rule_words(rule) for rule in RULES)
    assert when(verdict(1)) == "since step 120"
    assert when(verdict(1, until=120)) == "at step 120"
