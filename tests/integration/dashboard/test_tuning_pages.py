"""One tune's page, and where it is linked from."""

import re

from support.dashboard import Site, page_text
from support.dashboard_data import Scene
from support.tunes import make_tune


def test_a_tune_shows_its_trials_the_best_one_and_what_each_parameter_explains(site: Site, scene: Scene) -> None:
    id = make_tune(scene.ledger)
    page = site.text(f"/tuning/{id}")
    text = page_text(page)
    assert len(re.findall(r'id="trial-\d+"', page)) == 16
    for words in (
        "Trials 16 of 16, 2 at a time", "Pruned 4 at 25.0 % of their steps", "Failed 1", "InvalidInput: the training loss is nan",
        "Sampler tpe, pruned by median", "lr explains", "accuracy by trial", "10 of 40",
    ):  # fmt: skip
        assert words in text, words
    best = re.search(r"Best accuracy ([\d.]+) trial (\d+), on the validation split", text)
    assert best
    assert f'id="trial-{best[2]}"' in page
    assert page.count('class="fb-dot-best"') == 3, "one in the picture of each parameter"
    assert page.count("<circle") == 3 * 15, "all but the one that failed"
    first = re.findall(r"<figcaption>(\w+) <span", page)[0]
    assert first == "lr", "what explains most comes first"
    trial = re.search(r'href="/training/([0-9a-f]{32})">0<', page)
    assert trial
    assert f'href="/tuning/{id}"' in site.text(f"/training/{trial[1]}")
    for where in ("/training", f"/jobs/{id}", f"/jobs/{trial[1]}"):
        assert f'href="/tuning/{id}"' in site.text(where), where
    assert site.ask(f"/tuning/{trial[1]}").status == 404


def test_a_tune_that_runs_shows_what_there_is_and_can_be_canceled(site: Site, scene: Scene) -> None:
    id = make_tune(scene.ledger, 3, end=False)
    text = page_text(site.text(f"/tuning/{id}"))
    assert "Trials 2 of 3" in text
    assert "Cancel" in text
    assert "explains" not in text, "of three trials nothing can be told"
