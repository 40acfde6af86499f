"""How the configuration is composed, in Hydra's own words: `python -m pipeline --info defaults-tree experiment=micro`."""

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from pipeline.commands.flags import INFO
from pipeline.config.compose import compose
from pipeline.config.explain import CONF
from pipeline.errors import UserError


def show(arguments: list[str]) -> None:
    """Print what the first argument names, one of INFO, for the configuration that the others compose.

    Raises:
        UserError: for another word, and for a mistake in an override.
    """
    what, overrides = (arguments or [""])[0], arguments[1:]
    if what not in INFO:
        raise UserError(
            f"--info {what}: expected one of {', '.join(INFO)}, or nothing, which checks this machine"
        )
    compose(overrides)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="pipeline"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_info(what, "config", overrides)
