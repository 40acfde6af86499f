"""What must be true of recipes: composed by Hydra like everything under conf/, checked, and refused in one line."""

import json
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from pipeline.config.compose import compose
from pipeline.config.explain import CONF
from pipeline.donors.compose import compose_recipe
from pipeline.donors.recipe import FORMER_KEYS, SECTIONS, Recipe, flat, settings
from pipeline.errors import UserError

RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
HEADER = "# @package _global_\n"


def written(folder: Path, content: str | bytes) -> list[str]:
    """Overrides that choose a recipe with this content."""
    (folder / "recipe").mkdir(exist_ok=True)
    (folder / "recipe" / "own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return ["recipe=own", f"hydra.searchpath=[{folder}]"]


def refusal(overrides: list[str]) -> str:
    """The line that refuses them."""
    with pytest.raises(UserError) as caught:
        compose_recipe(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_and_names_itself(name: str) -> None:
    assert compose_recipe([f"recipe={name}"]).name == name  # which checks types, ranges and microbatches


def test_every_setting_of_a_recipe_can_be_set_and_none_is_changed_later() -> None:
    micro = compose_recipe(["recipe=micro"])
    for key, value in settings(micro).items():
        if value is not None:
            assert compose_recipe(["recipe=micro", f"{key}={value}"]) == micro, key
    with pytest.raises(FrozenInstanceError):
        micro.seed = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        micro.sft.lr = 1.0  # type: ignore[misc]
    assert settings(compose_recipe(["recipe=micro", "sft.epochs=2"]))["sft.epochs"] == 2.0


def test_a_recipe_of_ones_own_is_found_in_its_folder(tmp_path: Path) -> None:
    own = compose_recipe(written(tmp_path, f"{HEADER}name: own\nsft: {{lr: 2e-3, batch: 64}}"))
    assert (own.name, own.sft.lr, own.sft.batch, own.sft.epochs) == ("own", 2e-3, 64, 1.0)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        (CONF / "recipe" / "micro.yaml", "write recipe=micro"),
        ("/my/recipe/own.yaml", "write recipe=own 'hydra.searchpath=[/my]'"),
        (
            "own.yml",
            "move it to FOLDER/recipe/own.yaml and write recipe=own 'hydra.searchpath=[FOLDER]'",
        ),
    ],
)
def test_a_recipe_that_is_given_by_its_path_is_told_how_to_name_it(path: Path | str, remedy: str) -> None:
    assert refusal([f"recipe={path}"]) == f"recipe={path}: expected a recipe's name, found a path; {remedy}"


# ---- what is refused, in a file and on the command line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sft.lr: fast", "sft.lr: Value 'fast' of type 'str' could not be converted to Float"),
        ("sft.lr: true", "sft.lr: Value 'True' of type 'bool' could not be converted to Float"),
        ("sft.lr: null", "sft.lr: Incompatible value 'None' for field of type 'float'"),
        ("sft.lr: [1]", "sft.lr: Value '[1]' of type 'ListConfig' could not be converted to Float"),
        ("sft.lr: 0", "sft.lr: expected a finite number above 0, found 0.0"),
        ("grpo.lr: .inf", "grpo.lr: expected a finite number above 0, found inf"),
        ("seed: 1.5", "seed: Value '1.5' of type 'float' could not be converted to Integer"),
        ("seed: true", "seed: Value 'True' of type 'bool' could not be converted to Integer"),
        ("seed: '1'", "seed: expected a whole number, found '1'"),
        ("seed: -1", "seed: expected a number from 0 to 4294967295, found -1"),
        ("seed: 4294967296", "seed: expected a number from 0 to 4294967295, found 4294967296"),
        ("wandb: 1", "wandb: expected true or false, found 1"),
        ("wandb: 'true'", "wandb: expected true or false, found 'true'"),
        ("name: 3", "name: expected text (quoted, if it is a number), found 3"),
        ("name: ../x", "name: expected letters, digits, '.', '_' or '-' (it names files and folders)"),
        ("init.id: 3", "init.id: expected text (quoted, if it is a number), found 3"),
        (
            "init.revision: 1e10",
            "init.revision: expected text (quoted, if it is a number), found 10000000000",
        ),
        ("precision: null", "precision: Incompatible value 'None' for field of type 'str'"),
        (
            "data.documents: all",
            "data.documents: Value 'all' of type 'str' could not be converted to Integer",
        ),
        ("data.documents: 0", "data.documents: expected a number above 0, or null for all, found 0"),
        ("think: 1.5", "think: expected a share from 0 to 1, found 1.5"),
        ("target.direct: .nan", "target.direct: expected a share from 0 to 1, found nan"),
        ("base.arithmetic: -0.1", "base.arithmetic: expected a share from 0 to 1, found -0.1"),
        ("grpo.vllm_memory: 0", "grpo.vllm_memory: expected a share above 0 and at most 1, found 0.0"),
        ("grpo.steps: 0", "grpo.steps: expected a number above 0, found 0"),
        ("sft.epochs: 0", "sft.epochs: expected a finite number above 0, found 0.0"),
        ("sft.microbatch: 0", "sft.microbatch: expected a number above 0, found 0"),
        ("sft.microbatch: 3", "sft.microbatch: expected a divisor of sft.batch = 32, found 3"),
        (
            "grpo.microbatch: 3",
            "grpo.microbatch: expected a divisor of grpo.prompts * grpo.rollouts = 128, found 3",
        ),
        ("grpo.rollouts: 1", "grpo.rollouts: expected at least 2, to be compared with each other, found 1"),
        ("grpo.temperature: -1", "grpo.temperature: expected a finite number above 0, found -1.0"),
        ("grpo.beta: -1", "grpo.beta: expected a finite number, at least 0, found -1.0"),
        ("grpo.start: base", "grpo.start: expected 'sft' or 'init', found 'base'"),
        ("base.hidden: 96", "base.hidden: expected a multiple of 64 above 0, found 96"),
        ("base.vocabulary: 100", "base.vocabulary: expected at least 259, the bytes and 3 turn markers"),
        ("precision: fp8", "precision: expected float32 or bfloat16, found 'fp8'"),
        ("optimizer: adam", "optimizer: expected one of adamw_torch, "),
        ("sft: 5", "sft: expected settings such as sft.direct, found 5"),
        ("grpo: null", "grpo: expected settings such as grpo.start, found None"),
        ("grpo.step: 3", "unknown configuration key 'grpo.step'; did you mean 'steps'?"),
        ("sead: 3", "unknown configuration key 'sead'; did you mean 'seed'?"),
        ("epochs: 3", "unknown configuration key 'epochs'; did you mean 'sft.epochs'?"),
        ("microbatch: 3", "did you mean 'sft.microbatch' or 'grpo.microbatch'?"),
        ("seed: ${sead}", "seed: Interpolation key 'sead' not found"),
    ],
)
def test_a_setting_that_is_unknown_or_out_of_range_is_refused(
    setting: str, message: str, tmp_path: Path
) -> None:
    key, value = setting.split(": ")
    section, _, inner = key.rpartition(".")
    line = f"{section}: {{{inner}: {value}}}" if section else f"{key}: {value}"
    named = "" if key == "name" else "name: own\n"
    assert message in refusal(written(tmp_path, f"{HEADER}{named}{line}"))
    value = {".inf": "inf", ".nan": "nan"}.get(value, value)
    assert message in refusal(["recipe=micro", f"{key}={value}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "name: own",
            "the recipe's file: expected lines of key: value after a first line '# @package _global_'",
        ),
        ("- 1\n- 2", "the recipe's file: expected lines of key: value after a first line"),
        ("just words", "the recipe's file: expected lines of key: value after a first line"),
        ("", "the recipe's file: expected lines of key: value after a first line"),
        (HEADER, "name: a value is required; set it"),
        (f"{HEADER}- 1", "In 'recipe/own': ConfigTypeError raised while composing config"),
        (f"{HEADER}just words", "unknown configuration key 'just'"),
        (f"{HEADER}3: x", "unknown configuration key '3'; known: base, "),
        (f"{HEADER}null: x", "Incompatible key type 'NoneType'"),
        (f"{HEADER}a: [", "own.yaml: cannot be read as YAML"),
        (f"{HEADER}name: a\nname: b", "own.yaml: cannot be read as YAML"),
        (b"\x00\xff\xfe", "own.yaml: cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(written(tmp_path, content))


def test_of_several_files_that_are_no_yaml_the_chosen_one_is_named(tmp_path: Path) -> None:
    overrides = written(tmp_path, f"{HEADER}a: [")
    (tmp_path / "recipe" / "another.yaml").write_text("b: [")
    assert refusal(overrides).startswith(f"{tmp_path}/recipe/own.yaml: cannot be read as YAML")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[", "override not understood (expected key=value)"),
        ("seed", "override not understood (expected key=value)"),
        (
            "seed=1,2",
            "seed=1,2: expected one value; write a list in brackets, and text with a comma in quotes",
        ),
        ("+rounds=1", "unknown configuration key 'rounds'"),
        ("+sft.rounds=1", "unknown configuration key 'sft.rounds'"),
        ("~sft.lr", "sft.lr: a value is required; set it"),
        ("~grpo", "grpo.start: a value is required; set it"),
        ("sft.lr.x=1", "unknown configuration key 'sft.lr.x'"),
        ("experiment=micro", "'experiment' cannot be chosen here; known: recipe"),
        ("stages=[render]", "unknown configuration key 'stages'"),
        ("+recipe=smol", "recipe"),
        ("recipe=[micro,smol]", "recipe=[micro,smol]: expected the name of one recipe"),
        ("recipe=micr", "recipe=micr: no such option; did you mean 'micro'?"),
        ("hydra.searchpath=[/no/such]", "hydra.searchpath: no folder /no/such; make it, or leave it out"),
    ],
)
def test_an_override_that_fits_nothing_is_refused(override: str, message: str) -> None:
    assert message in refusal(["recipe=micro", override])


def test_a_recipe_is_no_group_of_an_experiment() -> None:
    with pytest.raises(
        UserError, match="'recipe' cannot be chosen here; recipes are for `python -m pipeline donors`"
    ):
        compose(["recipe=micro"])


@pytest.mark.parametrize("key", ["init.id", "data.id", "seed", "recipe"])
def test_an_override_without_a_value_is_refused(key: str) -> None:
    line = f"{key}=: expected a value, found none; give one, or leave {key} out"
    for empty in ("", " "):
        assert refusal(["recipe=smol", f"{key}={empty}"]) == line


# ---- keys from before recipes had sections


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("grpo_steps", "grpo.steps"),
        ("sft_direct", "sft.direct"),
        ("grpo_vllm_memory", "grpo.vllm_memory"),
        ("base_lr", "base.lr"),
        ("target_direct", "target.direct"),
        ("data", "data.id"),
        ("data_revision", "data.revision"),
        ("init", "init.id"),
        ("train_documents", "data.documents"),
        ("hidden", "base.hidden"),
    ],
)
def test_a_key_from_before_recipes_had_sections_is_told_its_name_of_today(
    old: str, new: str, tmp_path: Path
) -> None:
    line = f"'{old}' is of an earlier version; write {new}"
    assert refusal(["recipe=micro", f"{old}=1"]) == line
    assert refusal(["recipe=micro", f"+{old}=1"]) == line
    assert refusal(written(tmp_path, f"{HEADER}name: own\n{old}: null")) == line


def test_every_setting_of_the_shipped_family_has_a_name_of_today() -> None:
    old = json.loads((CONF.parent / "models" / "micro" / "recipe.json").read_text())
    assert not any(isinstance(value, dict) for value in old.values())
    assert flat(old).keys() == settings(Recipe()).keys()
    assert {FORMER_KEYS[key] for key in old.keys() - asdict(Recipe()).keys() | {"init", "data"}} == {
        key for key in settings(Recipe()) if key.split(".")[0] in SECTIONS
    }


# ---- settings that would do nothing


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target.direct", 0.3),
        ("base.lr", 1e-3),
        ("base.examples", 100),
        ("base.vocabulary", 512),
        ("base.hidden", 64),
        ("base.layers", 2),
    ],
)
def test_a_setting_that_does_nothing_beside_an_initialisation_is_refused(key: str, value: float) -> None:
    changes = ["recipe=micro", "target.direct=0.0", f"{key}={value}"]
    assert settings(compose_recipe(changes))[key] == value
    line = refusal([*changes, "init.id=a/model"])
    default = settings(Recipe())[key]
    assert line == f"{key}={value} does nothing where init is given; leave it out, or set {key}={default}"
    assert compose_recipe(["recipe=micro", "init.id=a/model", f"{key}={default}", "target.direct=0.0"])


@pytest.mark.parametrize("what", ["init", "data"])
def test_a_commit_of_nothing_on_the_hub_is_refused(what: str, tmp_path: Path) -> None:
    plain = ["recipe=micro", "target.direct=0.0", f"{what}.revision=v2"]
    for given in ([], [f"{what}.id={tmp_path}"]):
        assert f"{what}.revision='v2' does nothing without" in refusal([*plain, *given])
    assert compose_recipe([*plain, f"{what}.id=some/thing"])


@pytest.mark.parametrize("section", ["init", "data"])
def test_a_pinned_commit_stays_with_the_id_that_it_is_of(section: str) -> None:
    chosen = ["recipe=qwen2.5-7b"]
    own = compose_recipe(chosen)
    source = getattr(own, section)
    assert source.revision
    assert compose_recipe([*chosen, f"{section}.id={source.id}"]) == own
    for other in (f"{section}.id=some/other", f"{section}={{id: some/other}}", f"++{section}.id=some/other"):
        assert getattr(compose_recipe([*chosen, other]), section).revision is None
    for other in (
        [f"{section}.id=some/other", f"{section}.revision=v2"],
        [f"{section}={{id: some/other, revision: v2}}"],
    ):
        assert getattr(compose_recipe([*chosen, *other]), section).revision == "v2"
