"""A manifest of other types, of names that lead elsewhere, or that refers to nothing is refused with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.manifest import manifest_path, read_manifest
from tests import synthetic

ODD: list[tuple[list[Any], Any, str]] = [
    (["cells", 0, "key"], None, "cells.0.key: Input should be a valid string"),
    (["cells", 0, "key"], "../../elsewhere", "is no key"),
    (["cells", 0, "family"], "other", "is not of its grid"),
    (["conditions", "vector", "role"], 1e308, "conditions.vector.role: Input should be a valid string"),
    (["conditions", "vector", "role"], "side", "role 'side'"),
    (["conditions", "vector", "start"], "nowhere", "start 'nowhere'"),
    (["conditions", "vector", "label"], "a\nb", "is no label"),
    (["conditions", "vector", "row_label"], "a\x1b[31m", "is no label"),
    (["families", "micro", "group"], "a\nb", "is no label"),
    (["families", "micro", "pair"], "a\x1b[31m", "is no label"),
    (["benchmarks", "gsm8k", "form_of"], "a\nb", "is no label"),
    (["conditions", "vector", "terms", 0, "alpha"], "1", "terms.0.alpha: Input should be a valid number"),
    (["benchmarks", "gsm8k", "limit"], True, "benchmarks.gsm8k.limit: Input should be a valid integer"),
    (["benchmarks", "gsm8k", "chance"], 25.0, "chance 25"),
    (["benchmarks", "gsm8k", "cluster"], "prompt", "cluster 'prompt'"),
    (["benchmarks", "gsm8k", "variant_of"], "gsm9k", "is a variant of 'gsm9k', which is not there"),
    (["experiment"], "../x", "'../x' is no name"),
    (["schema"], 3, "written in format 3, this version reads 1 and 2"),
]


@pytest.mark.parametrize(
    ("place", "value", "said"), ODD, ids=[f"{'.'.join(map(str, o[0]))} {o[1]!r}" for o in ODD]
)
def test_an_odd_value_is_refused_with_its_reason(
    place: list[Any], value: Any, said: str, tmp_path: Path
) -> None:
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector")}
    benchmarks = {"gsm8k": synthetic.BENCHMARKS["gsm8k"]}
    manifest = synthetic.write_run(tmp_path, conditions=few, benchmarks=benchmarks, documents=2)
    path = manifest_path(tmp_path, manifest.experiment)
    content = json.loads(path.read_text())
    del content["sha256"]
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    path.write_text(json.dumps(content | {"sha256": digest(content)}))
    with pytest.raises(UserError) as refused:
        read_manifest(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).endswith("run the experiment again")
