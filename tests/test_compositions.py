"""What tests keep of Hydra's work changes nothing in what is composed."""

from pathlib import Path

import pytest

from pipeline.config.compose import as_yaml, compose
from pipeline.config.explain import CONF
from tests import compositions


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_a_configuration_is_the_same_with_what_was_kept_and_without(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"experiment={experiment}", "alpha=[0.5]", "families.model.target.id=x"]
    overrides = overrides if experiment == "model" else overrides[:2]
    first, second = as_yaml(compose(overrides)), as_yaml(compose(overrides))
    compositions.leave_out(monkeypatch)
    assert first == second == as_yaml(compose(overrides))


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    own = tmp_path / "experiment" / "mine.yaml"
    own.parent.mkdir()
    found = []
    for limit in (3, 24):
        own.write_text(f"# @package _global_\ndefaults: [micro]\nlimit: {limit}\n")
        found.append(compose([f"hydra.searchpath=[{tmp_path}]", "experiment=mine"]).limit)
    assert found == [3, 24]
