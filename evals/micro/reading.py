"""Four-way questions on a short passage about a made-up world, in the form of SciQ (arXiv 1707.06209).

The passage describes two or three invented creatures, so the answer has to be read and cannot be known; at
least one distractor is the same property of another creature of the passage.
"""

import random

CREATURES = [
    "dorvak",
    "felmir",
    "gorbal",
    "kelrav",
    "lumtev",
    "mirsol",
    "nalzor",
    "pelwen",
    "ravdor",
    "solfen",
    "tevlum",
    "wengor",
    "zorkel",
    "balnal",
    "vakpel",
]
# verb: what may stand after it
VERBS = {
    "eats": ["seeds", "leaves", "grass", "fish", "worms", "honey", "roots", "moss"],
    "visits": ["forests", "deserts", "rivers", "caves", "swamps", "meadows", "lakes", "valleys"],
    "likes": ["red", "blue", "green", "yellow", "white", "black", "brown", "purple"],
    "fears": ["fire", "snow", "wolves", "thunder", "rain", "owls", "snakes", "smoke"],
}


def sample(rng: random.Random) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """One question with SciQ's fields, and questions with answers about the rest of its ``support``.

    The support holds 4 to 6 sentences; the further questions are for training alone.
    """
    creatures = rng.sample(CREATURES, rng.choice([2, 3]))
    asked, other = rng.sample(list(VERBS), 2)
    answers = rng.sample(VERBS[asked], len(creatures))
    facts = [(who, asked, what) for who, what in zip(creatures, answers, strict=True)]
    facts += [(who, other, rng.choice(VERBS[other])) for who in creatures]
    further = [(f"The {who} {verb} what?", what) for who, verb, what in rng.sample(facts[1:], len(facts) - 1)]
    rng.shuffle(facts)
    rest = [what for what in VERBS[asked] if what not in answers]
    distractors = rng.sample(answers[1:] + rng.sample(rest, 4 - len(answers)), 3)
    document = {
        "question": f"The {creatures[0]} {asked} what?",
        "distractor1": distractors[0],
        "distractor2": distractors[1],
        "distractor3": distractors[2],
        "correct_answer": answers[0],
        "support": " ".join(f"The {who} {verb} {what}." for who, verb, what in facts),
    }
    return document, further
