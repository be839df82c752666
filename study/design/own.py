"""Code of the user's own in an experiment: the SHA-256 it was begun with, and what is tried of it beforehand."""

from __future__ import annotations

from collections.abc import Iterator

from study.design.experiment import Experiment
from study.design.space import Space, ends
from study.terms import BASELINE
from vae import code
from vae.code import is_reference
from vae.errors import UserError
from vae.recipe import Recipe


def with_sources(experiment: Experiment, stored: Experiment | None) -> Experiment:
    """The experiment with the SHA-256 of all code that it names. Raises UserError for code that has changed since the
    stored one was begun, or that isn't the one that its own `sources` say: another file under the same name is another
    question."""
    begun = {} if stored is None else stored.sources
    found = begun | _found(experiment, begun)
    for name, pinned in experiment.sources.items():
        if name not in found and name not in _of_techniques(experiment):
            named = f"There are: {', '.join(found)}." if found else "It names none."
            raise UserError(
                f"Experiment '{experiment.name}': sources has {name}, code that it doesn't name. {named}"
            )
        if pinned != found.get(name, pinned):  # an arm that isn't compared yet has none
            raise UserError(
                f"Experiment '{experiment.name}': {name} has SHA-256 {found[name][:12]}..., and sources says "
                f"{pinned[:12]}...: bring that code, or mend sources."
            )
    return experiment.model_copy(update={"sources": found})


def _of_techniques(experiment: Experiment) -> set[str]:
    """Code that the user's own techniques name, compared or not."""
    own = [experiment.known[name] for name in experiment.techniques]
    chosen = [choice for t in own for field in t.knobs for choice in t.knobs[field].choices or ()]
    values = [*chosen, *(value for t in own for value in t.overrides.values())]
    return {value for value in values if isinstance(value, str) and is_reference(value)}


def require_sources(experiment: Experiment) -> None:
    """Refuse (UserError) other code than the experiment was begun with."""
    _found(experiment, experiment.sources)


def _found(experiment: Experiment, before: dict[str, str]) -> dict[str, str]:
    try:
        return code.require_same(experiment.references, before)
    except UserError as error:
        raise UserError(f"Experiment '{experiment.name}': {error}") from None


def to_try(experiment: Experiment, stored: Experiment | None) -> Iterator[tuple[str, Recipe]]:
    """(where, recipe) of each network and optimizer that is new here and not the usual one: of the baseline, of each
    arm, and of each end of what is tuned of them."""
    seen: set[Recipe] = set()

    def new(where: str, base: Recipe, space: Space) -> Iterator[tuple[str, Recipe]]:
        # The search's own choices apart, a base stands for all that its ranges leave alone.
        tuned = [
            (f"{where}: {field} = {value}", base.replace(**{field: value}))
            for field, dimension in space.items()
            if field in ("model", "optimizer", "latent_size") or "." in field
            for value in ends(field, dimension)
        ]
        for place, recipe in [(where, base), *tuned]:
            if (recipe.model != "mlp" or recipe.references) and recipe not in seen:
                seen.add(recipe)
                yield place, recipe

    if stored is None or not (stored.arms or stored.search.trials):
        yield from new("recipe", experiment.recipe, {})
    for arm in (BASELINE, *experiment.arms):
        if stored is None or not stored.arms or arm not in (BASELINE, *stored.arms):
            shared = {
                field: experiment.space[field]
                for field in experiment.shared_fields
                if field in experiment.space
            }
            place = "recipe" if arm == BASELINE else f"arm '{arm}'"
            yield from new(place, experiment.base_recipe(arm), shared | experiment.knobs(arm))
    if experiment.search.trials and (stored is None or not stored.search.trials):
        yield from new("search.space", experiment.recipe, experiment.search.space)
