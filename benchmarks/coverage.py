"""Do the intervals hold what they promise, and do the stars mean 5 %? Measured by simulation.

    python -m benchmarks.coverage                       # every part, as Markdown (docs/statistics.md)
    python -m benchmarks.coverage clusters power        # some of them: see PARTS at the end

Paired answers are drawn by an ordinal probit model with a random effect of the cluster: a document is gained, lost
or unchanged as a normal variable falls above, below or between two thresholds, and within a cluster these
variables are correlated (`correlation`, the latent intraclass correlation). What is measured runs the functions of
pipeline/analysis. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scipy.special import ndtri

from benchmarks.clustered import Clustered, covered, without_zero
from benchmarks.draws import Array, beta, by_document, crossed_differences, draw, draw_bursts
from pipeline.analysis import intervals
from pipeline.analysis.design import design
from pipeline.analysis.heterogeneity import Heterogeneity, heterogeneity
from pipeline.analysis.paired import change, score
from pipeline.analysis.persistence import decide, persistence, share_left
from pipeline.analysis.power import detectable
from pipeline.analysis.repeats import crossed_variance, mean_difference, mean_score
from pipeline.analysis.signflip import mcnemar_exact, sign_flip

CLUSTERS, SIZES = (3, 4, 6, 11, 27), (8, 40, 240)
DISCORDANCE, CORRELATION = (0.005, 0.02, 0.1, 0.3), (0.0, 0.05, 0.2)
LEANING = {"no effect": 0.0, "3 gains to 1 loss": 0.5, "gains alone": 1.0}
SKEWED = np.array(
    [71, 56, 48, 42, 36, 30, 26, 22, 18, 15, 12, *[4] * 50]
)  # as skeletons of word problems are
LEVEL, HOLM_TESTS = 0.05, 40
EXPERIMENTS = 300  # in each cell: the whole takes minutes; 3000 tell a coverage of 94 from one of 95 %
Drawing = Callable[[np.random.Generator, int, Array, float, float, float], Array]


def shares(discordance: float, leaning: float) -> tuple[float, float]:
    return discordance * (1 + leaning) / 2, discordance * (1 - leaning) / 2


# ---- the parts ----


def choice(experiments: int) -> Iterator[str]:
    """Which method: the worst cell of each, over clusters of 40 documents."""
    grid = list(product((3, 6, 11, 27), (0.02, 0.1, 0.3), CORRELATION))
    names = (
        "Student's t, CR2", "the wider of t and documents", "wild bootstrap", "sign flip, inverted",
        "the wider of sign flip and documents", "ours",
    )  # fmt: skip
    cover: dict[str, list[float]] = {name: [] for name in names}
    stars: dict[str, list[float]] = {name: [] for name in names}
    width: dict[str, list[float]] = {name: [] for name in (names[0], names[1], names[5])}
    rng = np.random.default_rng(1)
    for groups, discordance, rho in grid:
        sizes = np.full(groups, 40)
        for leaning in (0.0, 0.5):
            gain, loss = shares(discordance, leaning)
            drawn = Clustered(draw(rng, experiments, sizes, gain, loss, rho), sizes)
            truth = gain - loss
            ends = dict(zip(width, (drawn.students(), drawn.wider(), drawn.ours()), strict=True))
            found = {name: covered(pair, truth) for name, pair in ends.items()}
            found[names[2]] = float(drawn.accepts_by_bootstrap(truth, rng).mean())
            found[names[3]] = float(drawn.accepts_by_flipping(truth).mean())
            found[names[4]] = float(drawn.accepts_by_either(truth).mean())
            for name in names:
                cover[name].append(found[name])
            if not leaning:
                for name in names[:5]:
                    stars[name].append(1 - found[name])
                stars[names[5]].append(float(drawn.stars().mean()))
            for name, (low, high) in ends.items():
                width[name].append(float(np.mean(high - low)))
    yield from table("method", "coverage, least", "most", "false stars, most", "width, median against ours")
    for name in names:
        ratio = np.median(np.array(width[name]) / np.array(width["ours"])) if name in width else np.nan
        shown = "–" if np.isnan(ratio) else f"{ratio:.2f}"
        yield row(
            name, percent(min(cover[name])), percent(max(cover[name])), percent(max(stars[name])), shown
        )


def rule(experiments: int) -> Iterator[str]:
    """What a star needs: the test, our interval, or both; power is the mean over 2 to 30 % changed, 3 gains to 1 loss and gains alone."""
    heads = (
        "false stars, most",
        "beside an interval with zero, most",
        "power",
        f"power, Holm over {HOLM_TESTS}",
    )
    rng, small = np.random.default_rng(11), LEVEL / HOLM_TESTS
    names = ("the test", "the interval", "both at the test's level", "ours: both, the interval at 95 %")
    shapes = {f"{g} of {s}": np.full(g, s) for g, s in ((6, 40), (11, 8), (11, 40), (27, 40), (27, 240))}
    yield from table("clusters", "what a star needs", *heads)
    for label, sizes in (shapes | {"skewed: 61 of 4 to 71": SKEWED}).items():
        rates: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
        for discordance, rho, leaning in product((0.02, 0.1, 0.3), CORRELATION, LEANING.values()):
            gain, loss = shares(discordance, leaning)
            drawn = Clustered(draw(rng, experiments, sizes, gain, loss, rho), sizes)
            p_interval = intervals.p_value(drawn.mean, drawn.square, drawn.size)
            for name, starred, corrected in (
                (names[0], drawn.flipped < LEVEL, drawn.flipped < small),
                (names[1], without_zero(drawn.by_counts()), p_interval < small),
                (names[2], drawn.stars_at_one_level(), drawn.stars_at_one_level(small)),
                (names[3], drawn.stars(), drawn.stars(small)),
            ):
                beside = starred & ~without_zero(drawn.by_counts())
                rates[name].append((leaning, *(float(x.mean()) for x in (starred, beside, corrected))))
        for name, found in rates.items():
            none = np.array([one[1:] for one in found if not one[0]])
            some = np.array([one[1:] for one in found if one[0]])
            beside_zero = max(float(x[:, 1].max()) for x in (none, some))
            entries = (
                float(none[:, 0].max()),
                beside_zero,
                float(some[:, 0].mean()),
                float(some[:, 2].mean()),
            )
            yield row(label, name, *map(percent, entries))


def clusters(experiments: int) -> Iterator[str]:
    """Our interval and test over the whole grid: the least and the largest coverage over the correlations."""
    rng = np.random.default_rng(2)
    heads = [f"{100 * d:g} %: {what}" for d in DISCORDANCE for what in ("coverage", "gains alone", "stars")]
    yield from table("clusters", "documents in each", *heads)
    cells: list[float] = []
    many: list[float] = []  # with at least 20 changes to be expected
    for groups, size in product(CLUSTERS, SIZES):
        sizes, entries = np.full(groups, size), []
        for discordance in DISCORDANCE:
            found: dict[str, list[float]] = {name: [] for name in LEANING}
            stars = []
            for rho, (name, leaning) in product(CORRELATION, LEANING.items()):
                gain, loss = shares(discordance, leaning)
                drawn = Clustered(draw(rng, experiments, sizes, gain, loss, rho), sizes)
                found[name].append(covered(drawn.ours(), gain - loss))
                if not leaning:
                    stars.append(float(drawn.stars().mean()))
            both = found["no effect"] + found["3 gains to 1 loss"]
            cells += both
            many += both if groups * size * discordance >= 20 else []
            entries += [span(both), span(found["gains alone"]), percent(max(stars))]
        yield row(groups, size, *entries)
    yield from ("", f"All: {summary(cells)}", f"Where 20 changes or more are expected: {summary(many)}")


def stress(experiments: int) -> Iterator[str]:
    """Beyond the grid: strong correlation, changes in bursts, and clusters of unequal size."""
    rng = np.random.default_rng(3)
    one_large = np.array([100] + [1] * 400)
    shapes: dict[str, tuple[Array, tuple[float, ...], Drawing]] = {
        "11 of 40, correlation 0.5": (np.full(11, 40), (0.5,), draw),
        "27 of 240, correlation 0.5": (np.full(27, 240), (0.5,), draw),
        "11 of 40, bursts": (np.full(11, 40), (0.2,), draw_bursts),
        "27 of 240, bursts": (np.full(27, 240), (0.2,), draw_bursts),
        "6 of 4, 8, 16, … 128": (2 ** np.arange(2, 8), CORRELATION, draw),
        "11 of 5, 10, … 55": (5 * np.arange(1, 12), CORRELATION, draw),
        "27 of 10, 20, … 270": (10 * np.arange(1, 28), CORRELATION, draw),
        "one of 100 and 400 alone": (one_large, CORRELATION, draw),
        "1000 in pairs": (np.full(500, 2), CORRELATION, draw),
        "skewed: 61 of 4 to 71": (SKEWED, CORRELATION, draw),
    }
    yield from table(
        "clusters", *(f"{100 * d:g} %: {what}" for d in DISCORDANCE for what in (*LEANING, "stars"))
    )
    for name, (sizes, correlations, drawing) in shapes.items():
        entries = []
        for discordance in DISCORDANCE:
            found: dict[str, list[float]] = {leaning: [] for leaning in LEANING}
            stars = []
            for rho, (label, leaning) in product(correlations, LEANING.items()):
                gain, loss = shares(discordance, leaning)
                drawn = Clustered(drawing(rng, experiments, sizes, gain, loss, rho), sizes)
                found[label].append(covered(drawn.ours(), gain - loss))
                if not leaning:
                    stars.append(float(drawn.stars().mean()))
            entries += [span(values) for values in found.values()] + [percent(max(stars))]
        yield row(name, *entries)


def documents(experiments: int) -> Iterator[str]:
    """Independent documents: the interval, and the exact McNemar test."""
    rng = np.random.default_rng(4)
    yield from table(
        "documents", *(f"{100 * d:g} %: {what}" for d in DISCORDANCE for what in ("coverage", "stars"))
    )
    for n in (30, 100, 164, 500, 1319, 6511):
        entries = []
        for discordance in DISCORDANCE:
            found, stars = [], 0.0
            for leaning in LEANING.values():
                gain, loss = shares(discordance, leaning)
                counts = rng.multinomial(n, [gain, loss, 1 - gain - loss], experiments)
                ends, starred = alone(counts, n)
                found.append(covered(ends, gain - loss))
                if not leaning:
                    stars = float(starred.mean())
            entries += [span(found), percent(stars)]
        yield row(n, *entries)


def alone(counts: Array, n: int, level: float = LEVEL) -> tuple[tuple[Array, Array], Array]:
    """Our interval of independent documents, and whether both it and McNemar's test leave zero out."""
    mean, square = (counts[:, 0] - counts[:, 1]) / n, (counts[:, 0] + counts[:, 1]) / n
    low, high = intervals.paired(mean, square, n)
    p = np.array([mcnemar_exact(int(gained), int(lost)) for gained, lost in counts[:, :2]])
    starred = (p < level) & without_zero((low, high))
    to_zero = p >= LEVEL
    return (np.where(to_zero, np.minimum(low, 0), low), np.where(to_zero, np.maximum(high, 0), high)), starred


def scores(experiments: int) -> Iterator[str]:
    """A single mean score: Agresti and Coull's interval at the effective size, in strata and in clusters."""
    rng = np.random.default_rng(5)
    experiments = min(experiments, 1000)
    yield from table(
        "documents", "coverage, strata fixed", "coverage, groups a sample", "largest upper end, %"
    )
    for groups, size in product((3, 4, 11, 27), (2, 25, 240)):
        codes = np.repeat(np.arange(groups), size)
        fixed, sample = design(len(codes), strata=codes), design(len(codes), clusters=codes)
        within, between, highest = [], [], 0.0
        for level, spread in product((0.05, 0.5, 0.9), (0.0, 0.05, 0.2)):
            skill = beta(rng, level, spread, groups)
            truth = float(skill.mean())
            inside = drawn_in = 0
            for _ in range(experiments):
                found = score((rng.random(len(codes)) < skill[codes]) * 1.0, fixed)
                inside += found.low <= truth <= found.high
                other = beta(rng, level, spread, groups)
                wide = score((rng.random(len(codes)) < other[codes]) * 1.0, sample)
                drawn_in += wide.low <= level <= wide.high
                highest = max(highest, found.high, wide.high)
            within.append(inside / experiments)
            between.append(drawn_in / experiments)
        yield row(f"{groups} × {size}", span(within), span(between), f"{100 * highest:.1f}")


def strata(experiments: int) -> Iterator[str]:
    """A paired difference over fixed strata with effects of their own (BBH's main number)."""
    rng = np.random.default_rng(6)
    yield from table("strata", "documents in each", "coverage", "false stars")
    for groups, size in product((4, 27), (9, 100, 240)):
        sizes = np.maximum(2, (size * np.linspace(0.6, 1.4, groups)).astype(int))
        plan = design(int(sizes.sum()), strata=np.repeat(np.arange(groups), sizes))
        found, stars = [], []
        for discordance, leaning, wave in product((0.02, 0.1, 0.3), (0.0, 0.5), (0.0, 1.0)):
            effect = discordance * np.clip(leaning + wave * np.cos(np.arange(groups)), -1, 1)
            up, down = (discordance + effect) / 2, (discordance - effect) / 2
            chances = np.stack([up, down, 1 - up - down], axis=-1)
            counts = rng.multinomial(np.broadcast_to(sizes, (experiments, groups)), chances)
            mean = ((counts[..., 0] - counts[..., 1]) / sizes).mean(axis=-1)
            square = ((counts[..., 0] + counts[..., 1]) / sizes).mean(axis=-1)
            found.append(covered(intervals.paired(mean, square, plan.effective), float(effect.mean())))
            if discordance == 0.1 and not leaning and not wave:
                p = [sign_flip(plan.sums(by_document(sizes, c[:, 0], c[:, 1]))) for c in counts[:400]]
                ends = intervals.paired(mean, square, plan.effective)
                both = (np.array(p) < LEVEL) & without_zero(ends)[:400]
                stars.append(float(both.mean()))
        yield row(groups, f"{sizes.min()} to {sizes.max()}", span(found), percent(max(stars)))


def seeds(experiments: int) -> Iterator[str]:
    """+v against random vectors over seeds: ours, the documents alone, and a bootstrap of seeds and documents."""
    rng, n = np.random.default_rng(7), 300
    experiments = min(experiments, 1000)
    blocks = design(n).blocks
    heads = ("ours", "false stars, most", "documents alone", "bootstrap of both", "mean score over families")
    yield from table("seeds", *heads)
    for k in (2, 3, 5, 10):
        ours, stars, of_documents, bootstrap = [], [], [], []
        for discordance, of_seed, shared in product((0.02, 0.1, 0.3), (0.0, 1.0, 3.0), (0.5, 0.95)):
            x = crossed_differences(rng, experiments, k, n, discordance, of_seed, shared)
            parts = crossed_variance(x / n, blocks, rare=True)
            typical = x.mean(axis=1)
            mean, square = typical.mean(axis=-1), np.square(typical).mean(axis=-1)
            size = intervals.effective_size(square - mean**2, parts, n, 0.95, n)
            ends = intervals.paired(mean, square, size)
            ours.append(covered(ends, 0.0))
            stars.append(float(without_zero(ends).mean()))
            of_documents.append(covered(intervals.paired(mean, square, n), 0.0))
            bootstrap.append(_bootstrap_coverage(rng, x[:300]))
        entries = (span(ours), percent(max(stars)), span(of_documents), span(bootstrap))
        yield row(k, *entries, span(_family_coverage(rng, k, n)))


def power(experiments: int) -> Iterator[str]:
    """How often the difference that is called detectable is found: it says 80 %."""
    rng = np.random.default_rng(8)
    yield from table(
        "documents", "changed", "at 5 %: detectable", "found", "after Holm's over 40: detectable", "found"
    )
    for n, discordance in product((100, 164, 1000, 6511), (0.0, 0.005, 0.05, 0.3)):
        entries: list[str] = []
        for level in (LEVEL, LEVEL / HOLM_TESTS):
            least = detectable(n, discordance, level)
            gain = (least.discordance + least.effect) / 2
            counts = rng.multinomial(n, [gain, gain - least.effect, 1 - least.discordance], experiments)
            found = alone(counts, n, level)[1]
            entries += [f"{100 * least.effect:.2f}", percent(float(found.mean()))]
        yield row(n, "none" if not discordance else f"{100 * discordance:g} %", *entries)
    yield ""
    yield from table("clusters", "changed", "correlation", "detectable, median", "found at the median")
    for (groups, size), discordance, rho in product(
        ((6, 40), (11, 40), (27, 40), (27, 240)), (0.05, 0.3), (0.0, 0.05, 0.2)
    ):
        sizes = np.full(groups, size)
        plan = design(int(sizes.sum()), clusters=np.repeat(np.arange(groups), sizes))
        counts = draw(rng, 60, sizes, discordance / 2, discordance / 2, rho)
        said = [change(by_document(sizes, c[:, 0], c[:, 1]), plan).detectable for c in counts]
        name = (f"{groups} × {size}", f"{100 * discordance:g} %", rho)
        if np.isnan(said).mean() > 0.5:
            yield row(*name, "none", "–")
            continue
        effect = float(np.nanmedian(said))
        total = max(discordance, effect)
        drawn = Clustered(
            draw(rng, experiments, sizes, (total + effect) / 2, (total - effect) / 2, rho), sizes
        )
        yield row(*name, f"{100 * effect:.2f}", percent(float(drawn.stars().mean())))


def persisting(experiments: int) -> Iterator[str]:
    """The share of a gain that is left: its interval, and the words that are said of it."""
    rng = np.random.default_rng(9)
    experiments = min(experiments, 1500)
    words = ("yes", "at least in part", "in part", "no", "cannot tell", "no gain")
    yield from table("documents", "gain", "left", "share covered", *words)
    for n, gain, left in product((300, 1319), (0.1, 0.3), (1.0, 0.5, 0.0)):
        plan, inside, said = design(n), 0, {word: 0 for word in words}
        for _ in range(experiments):
            a0, b0 = ((rng.random(n) < 0.3) * 1.0 for _ in range(2))
            a, b = ((rng.random(n) < 0.3 + g) * 1.0 for g in (gain, gain * left))
            share = share_left(a - a0, b - b0, plan)
            inside += share.low <= left <= share.high
            outcome = decide([persistence(a0, a, b0, b, plan, level=None)])[0].outcome
            said[outcome] = said.get(outcome, 0) + 1
        yield row(
            n,
            f"{100 * gain:g}",
            f"{100 * left:g} %",
            percent(inside / experiments),
            *(percent(said[w] / experiments) for w in words),
        )


def pairs(experiments: int) -> Iterator[str]:
    """Do several donor pairs have one effect? Found where they have (5 %), with shared documents; and τ."""
    rng = np.random.default_rng(10)
    experiments = min(experiments, 1000)
    yield from table("pairs", "documents", "found, τ = 0", "found, τ = 5 points", "τ, median", "mean covered")
    for k, n in product((2, 4, 7), (164, 1319)):
        plan, found = design(n), dict[float, list[Heterogeneity]]()
        covered_mean = 0
        for tau in (0.0, 0.05):
            for _ in range(experiments):
                base = rng.random(n) < 0.5
                effects = 0.05 + tau * rng.standard_normal(k)
                moved = rng.random((k, n)) < 0.4
                new = np.where(moved, rng.random((k, n)) < np.clip(0.5 + effects[:, None] / 0.4, 0, 1), base)
                found.setdefault(tau, []).append(heterogeneity(new * 1.0 - base, plan))
                mean = mean_difference(new * 1.0 - base, plan, level=None)
                covered_mean += bool(tau) and mean.low <= 0.05 <= mean.high
        rates = [percent(float(np.mean([one.p < LEVEL for one in found[tau]]))) for tau in (0.0, 0.05)]
        middle = f"{100 * float(np.median([one.tau for one in found[0.05]])):.1f}"
        yield row(k, n, *rates, middle, percent(covered_mean / experiments))


def _bootstrap_coverage(rng: np.random.Generator, x: Array, draws: int = 400) -> float:
    """The percentile interval of means over seeds and documents, both drawn again with replacement."""
    experiments, k, n = x.shape
    of_seeds = rng.multinomial(k, np.full(k, 1 / k), draws) / k
    of_documents = rng.multinomial(n, np.full(n, 1 / n), draws) / n
    inside = 0
    for one in x:
        means = np.einsum("bk,kb->b", of_seeds, one @ of_documents.T)
        inside += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    return inside / experiments


def _family_coverage(rng: np.random.Generator, k: int, n: int, experiments: int = 300) -> list[float]:
    """Coverage of `mean_score` by k families that differ in skill, on documents that differ in difficulty."""
    plan, found = design(n), []
    for level, of_family, shared in product((0.1, 0.5, 0.9), (0.0, 0.05, 0.3), (0.0, 0.5)):
        threshold, inside = float(ndtri(level)) * np.sqrt(1 + of_family**2), 0
        for _ in range(experiments):
            latent = np.sqrt(shared) * rng.standard_normal(n) + of_family * rng.standard_normal((k, 1))
            latent = latent + np.sqrt(1 - shared) * rng.standard_normal((k, n))
            got = mean_score((latent < threshold) * 1.0, plan)
            inside += got.low <= level <= got.high
        found.append(inside / experiments)
    return found


# ---- Markdown ----


def table(*heads: str) -> Iterator[str]:
    yield row(*heads)
    yield row(*("---" for _ in heads))


def row(*entries: object) -> str:
    return "| " + " | ".join(str(entry) for entry in entries) + " |"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def span(values: list[float]) -> str:
    """The least and the largest of some shares, in per cent."""
    ends = dict.fromkeys((percent(min(values)), percent(max(values))))
    return " to ".join(ends)


def summary(cells: list[float]) -> str:
    x = np.array(cells)
    low, high, most = (x < 0.93).sum(), ((x >= 0.93) & (x <= 0.97)).sum(), (x > 0.97).sum()
    return f"{len(x)} cells: {low} below 93 %, {high} from 93 to 97 %, {most} above; the least {percent(x.min())} %."


PARTS: dict[str, Callable[[int], Iterator[str]]] = {
    part.__name__: part
    for part in (choice, rule, clusters, stress, documents, scores, strata, seeds, power, persisting, pairs)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS, help=f"in each cell ({EXPERIMENTS})")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    print(f"{given.experiments} experiments in each cell, fewer where a part says so.")
    for name in given.parts or PARTS:
        print(f"\n### {name}: {PARTS[name].__doc__}\n", flush=True)
        for line in PARTS[name](given.experiments):
            print(line, flush=True)


if __name__ == "__main__":
    main()
