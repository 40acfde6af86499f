"""Perturbations of SciQ-like documents {question, support, distractor1, distractor2, distractor3,
correct_answer}.

lm-eval scores the four options by log-likelihood after `support, Question: ..., Answer:`. The kinds follow
the robustness studies of multiple choice (arXiv:2309.03882: option order; arXiv:2307.03172 and 2302.00093:
text that does not help).
"""

import difflib
import random
import re

from evals.perturbations.common import (
    REFERS_BACK,
    Document,
    irrelevant_facts,
    perturbation,
    sentences,
)

OPTIONS = ("distractor1", "distractor2", "distractor3", "correct_answer")


@perturbation("sciq", version=2)
def irrelevant_support(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """Three sentences about other things are put into the support, at its end or before sentences that do not
    refer back.

    Must stay true: every sentence of the support and their order, the question, the options and the answer;
    the new sentences share no content word with any of them. Left out: documents without a support.
    """
    if not document["support"].strip():
        return None
    everything = " ".join(str(document[field]) for field in ("question", "support", *OPTIONS))
    facts = irrelevant_facts(rng, everything, 3)
    if len(facts) < 3:
        return None
    parts = sentences(document["support"].strip())
    places = [i for i, part in enumerate(parts) if i == 0 or not REFERS_BACK.search(part)] + [len(parts)]
    for place, fact in zip(sorted(rng.choices(places, k=3), reverse=True), facts, strict=True):
        if place == len(parts):
            parts[-1] += " "
            parts.append(fact)
        else:
            parts.insert(place, fact + " ")
    return {**document, "support": re.sub(r"\s+$", "", "".join(parts))}


@perturbation("sciq", version=1)
def no_support(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The support is removed.

    Must stay true: question, options and answer. A question about the real world can still be answered from
    knowledge; one about a made-up world (the micro benchmark) cannot, and there chance is the expected score.
    Left out: documents without a support.
    """
    return {**document, "support": ""} if document["support"].strip() else None


@perturbation("sciq", version=1)
def choice_order(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The question lists its four options, in a random order.

    Changes: `question` gets a line "Options:" and a line for each option. lm-eval's sciq keeps the options
    out of the prompt and scores each by itself, so that their order in the fields could not matter; it can
    once the prompt lists them. The option fields stay as they are, and with them lm-eval's gold index. Must
    stay true: question, support, options and answer. Left out: documents in which two options are the same.
    Source: arXiv:2309.03882.
    """
    options = [document[field] for field in OPTIONS]
    if len({option.strip().lower() for option in options}) < len(options):
        return None
    rng.shuffle(options)
    listed = "\n".join(f"- {option}" for option in options)
    return {**document, "question": f"{document['question']}\nOptions:\n{listed}"}


# Terms of which at most one can be right: a line for each kind.
KINDS = [
    line.split()
    for line in """
    hydrogen oxygen nitrogen carbon helium sulfur calcium iron copper sodium
    proton neutron electron
    mercury venus mars jupiter saturn uranus neptune
    mammal bird reptile amphibian insect
    heart lung liver kidney stomach brain pancreas spleen bladder
    nucleus ribosome chloroplast vacuole lysosome
    mitochondria ribosomes chloroplasts vacuoles lysosomes
    protein carbohydrate lipid
    monosaccharide disaccharide polysaccharide
    enzyme hormone antibody vitamin
    bacteria viruses fungi protists
    angiosperm gymnosperm
    roots stems leaves flowers
    digestive circulatory respiratory nervous endocrine excretory lymphatic
    cardiovascular respiratory digestive
    arteries veins capillaries
    ventricle atrium
    cornea retina iris pupil
    skull spine pelvis
    thyroid pituitary adrenal
    ovary testis
    ovaries testes
    larva pupa
    prophase metaphase anaphase telophase
    photosynthesis respiration fermentation
    prokaryotic eukaryotic
    unicellular multicellular
    invertebrate vertebrate
    herbivore carnivore omnivore
    producer consumer decomposer
    mutualism commensalism parasitism
    asexual sexual
    endocytosis exocytosis
    oviparous viviparous
    hydrophobic hydrophilic
    central peripheral
    xylem phloem
    gametophyte sporophyte
    dna rna
    genotype phenotype
    igneous sedimentary metamorphic
    crust mantle core
    troposphere stratosphere mesosphere thermosphere
    oceanic continental
    evaporation condensation sublimation
    melting freezing boiling
    solid liquid gas
    exothermic endothermic
    ectothermic endothermic
    single double triple
    solvent solute
    reactant product
    anode cathode
    metal nonmetal metalloid
    fission fusion
    kinetic potential
    convex concave
    converging diverging
    longitudinal transverse
    conduction convection radiation
    biotic abiotic
    biology chemistry physics geology astronomy
    comet asteroid galaxy star
    north south east west
    left right
    increases decreases
    expands shrinks
    slowly quickly
    cold hot
    low high
    red white
    red blue green yellow white black brown purple orange
    """.strip().splitlines()
]


NEGATION = re.compile(r"\b(?:not|cannot|no|unable|never|without|lacks?|lost|except)\b|n't\b", re.IGNORECASE)


def counterparts(answer: str) -> list[str]:
    """The answer with one of its terms replaced by each other term of its kind; none if it has none."""
    for terms in KINDS:
        for term in terms:
            match = re.search(rf"\b{term}(s?)\b", answer, re.IGNORECASE)
            if match:
                before, plural, after = answer[: match.start()], match[1], answer[match.end() :]
                article = re.search(r"\ban? $", before) is not None
                return [
                    before + other + plural + after
                    for other in terms
                    if other not in answer.lower()
                    and not (plural and other.endswith(("s", "y")))
                    and not (article and (other[0] in "aeiou") != (term[0] in "aeiou"))
                ]
    return []


def openings(text: str) -> set[str]:
    """The first five letters of each word."""
    return {word[:5] for word in re.findall(r"[a-z0-9]+", text.lower())}


@perturbation("sciq", version=2)
def close_distractor(document: Document, rng: random.Random, subtask: str | None) -> Document | None:
    """The distractor least like the answer in spelling gives way to a counterpart of the answer.

    Changes: one distractor. The new one is the answer with one term replaced by another of its kind, such as
    "fission" by "fusion" or "veins" by "arteries"; terms of a kind exclude each other. Must stay true: the
    answer is the only right option; so no term is taken that stands in the question, the support or an
    option. Left out: documents whose answer has no term of a known kind or no free counterpart, and
    questions with a negation, to which many terms may be right.
    """
    answer = document["correct_answer"]
    options = " ".join(document[field] for field in OPTIONS)
    taken = openings(" ".join((document["question"], document["support"], options)))
    usable = [new for new in counterparts(answer) if openings(new) - taken]
    if not usable or "(" in answer or NEGATION.search(document["question"]):
        return None

    def nearness(field: str) -> float:
        return difflib.SequenceMatcher(None, document[field].lower(), answer.lower(), autojunk=False).ratio()

    return {**document, min(OPTIONS[:3], key=nearness): rng.choice(usable)}
