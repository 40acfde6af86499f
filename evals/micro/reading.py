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
# property: (sentence about {c}, question about {c}, values)
PROPERTIES = {
    "food": (
        "The {c} eats {v}.",
        "What does the {c} eat?",
        ["seeds", "leaves", "grass", "fish", "worms", "honey", "roots", "moss"],
    ),
    "home": (
        "The {c} lives in the {v}.",
        "Where does the {c} live?",
        ["forest", "desert", "river", "cave", "swamp", "meadow", "lake", "valley"],
    ),
    "colour": (
        "The {c} is {v}.",
        "What colour is the {c}?",
        ["red", "blue", "green", "yellow", "white", "black", "brown", "purple"],
    ),
    "fear": (
        "The {c} is afraid of {v}.",
        "What is the {c} afraid of?",
        ["fire", "snow", "wolves", "thunder", "rain", "owls", "snakes", "smoke"],
    ),
}


def sample(rng: random.Random) -> dict[str, str]:
    """One question with SciQ's fields; ``support`` holds 4 to 6 sentences."""
    creatures = rng.sample(CREATURES, rng.choice([2, 3]))
    asked = rng.choice(list(PROPERTIES))
    other = rng.choice([name for name in PROPERTIES if name != asked])
    sentences, answers = [], rng.sample(PROPERTIES[asked][2], len(creatures))
    for creature, answer in zip(creatures, answers, strict=True):
        sentences.append(PROPERTIES[asked][0].format(c=creature, v=answer))
        sentences.append(PROPERTIES[other][0].format(c=creature, v=rng.choice(PROPERTIES[other][2])))
    rng.shuffle(sentences)
    correct, distractors = answers[0], answers[1:]
    rest = [value for value in PROPERTIES[asked][2] if value not in answers]
    distractors = rng.sample(distractors + rng.sample(rest, 3 - len(distractors)), 3)
    return {
        "question": PROPERTIES[asked][1].format(c=creatures[0]),
        "distractor1": distractors[0],
        "distractor2": distractors[1],
        "distractor3": distractors[2],
        "correct_answer": correct,
        "support": " ".join(sentences),
    }
