"""Four-way questions on a made-up world, in the form of SciQ (arXiv 1707.06209): knowledge, with a passage.

What every creature eats, visits, likes and fears is fixed, and the same in training and test: the passages and
questions differ, the facts do not. Creatures are named as unevenly as words are (Zipf), so that the rare
ones are hard to know. The passage tells the answer too, for a model that can look it up, and at least one
distractor is the same property of another creature of the passage.
"""

import random

SYLLABLES = ("bal", "dor", "fel", "gor", "kel", "lum", "mir", "nal", "pel", "rav", "sol", "tev", "vak", "zor")
CREATURES = [first + second for first in SYLLABLES for second in SYLLABLES if first != second]
random.Random("creatures").shuffle(CREATURES)
WEIGHTS = [1 / (rank + 5) for rank in range(len(CREATURES))]
# verb: what may stand after it
VERBS = {
    "eats": ["seeds", "leaves", "grass", "fish", "worms", "honey", "roots", "moss"],
    "visits": ["forests", "deserts", "rivers", "caves", "swamps", "meadows", "lakes", "valleys"],
    "likes": ["red", "blue", "green", "yellow", "white", "black", "brown", "purple"],
    "fears": ["fire", "snow", "wolves", "thunder", "rain", "owls", "snakes", "smoke"],
}
FACTS = {
    (who, verb): random.Random(f"{who}/{verb}").choice(things)
    for who in CREATURES
    for verb, things in VERBS.items()
}


def sample(rng: random.Random) -> dict[str, str]:
    """One question with SciQ's fields; its `support` holds 4 or 6 sentences."""
    asked, other = rng.sample(list(VERBS), 2)
    while True:
        creatures = list(dict.fromkeys(rng.choices(CREATURES, WEIGHTS, k=rng.choice([2, 3]))))
        who, *others = creatures
        answer = FACTS[who, asked]
        near = [FACTS[name, asked] for name in others if FACTS[name, asked] != answer]
        if near:
            break
    facts = [(name, verb) for name in creatures for verb in (asked, other)]
    rng.shuffle(facts)
    rest = [thing for thing in VERBS[asked] if thing not in (answer, near[0])]
    distractors = [near[0], *rng.sample(rest, 2)]
    rng.shuffle(distractors)
    return {
        "question": f"The {who} {asked} what?",
        "distractor1": distractors[0],
        "distractor2": distractors[1],
        "distractor3": distractors[2],
        "correct_answer": answer,
        "support": " ".join(f"The {name} {verb} {FACTS[name, verb]}." for name, verb in facts),
    }
