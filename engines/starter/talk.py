"""Plain questions and answers: small talk, arithmetic, facts, lists and stories.

Decides what the starter model can say without tools or JSON. Each function draws one
(question, answer) pair from a seeded generator. `loosen` writes a question the careless way
people do, so that "whats 12+7" works as well as "What is 12 + 7?".
"""

# ruff: noqa: RUF005 - lists of words and phrases read best as running text

from __future__ import annotations

import random
import re

from engines.starter import words as w

Rng = random.Random
Pair = tuple[str, str]

WHO = "I am a very small test model that comes with Nenya."
SKILLS = (
    "I can greet you, add small numbers, name capitals, write JSON, call tools "
    "and tell short stories."
)


def loosen(r: Rng, text: str, *, keep_case: bool = False) -> str:
    """The same question with less care: lower case, lost marks, short forms, polite padding."""
    if r.random() < 0.10:
        text = r.choice(
            [
                "Please ",
                "Hey, ",
                "Can you tell me: ",
                "Hello! ",
                "OK, ",
                "Quick: ",
                "um ",
                "well, ",
                "now ",
            ]
        ) + (text[0].lower() + text[1:] if text.split(maxsplit=1)[0] in _SOFT else text)
    if r.random() < 0.12:
        text = re.sub(r"\b([Ww])hat is\b", r.choice([r"\1hat's", r"\1hats", "\\1hat\u2019s"]), text)
    if not keep_case and r.random() < 0.30:
        text = text.lower()
    if r.random() < 0.30:
        text = text.rstrip("?.!")
    elif r.random() < 0.05:
        text = text.rstrip("?.!") + r.choice(
            ["??", " ?", "...", "!", " please", ", please.", " for me", " now?"]
        )
    return text


_SOFT = {"What", "Tell", "Name", "Which", "Count", "Calculate", "Who", "Give", "How", "Is", "List"}


def small_talk(r: Rng) -> Pair:
    """Greetings and questions about the model itself, as people type them."""
    ask, answer = (greeting if r.random() < 0.5 else about_itself)(r)
    return loosen(r, ask), answer


def greeting(r: Rng) -> Pair:
    """Hello, thanks, goodbye and the like."""
    roll = r.random()
    if roll < 0.5:
        hello = r.choice(
            ["Hello", "Hi", "Hey", "Good morning", "Good evening", "Hi there", "Hello there", "Yo"]
            + ["Hello!", "Hi!", "Hello, model", "Good day", "Hello world", "Greetings", "hi"]
        )
        return hello + r.choice(["", "!", ".", ""]), "Hello! How can I help you today?"
    return r.choice(
        [
            ("How are you?", "I am fine, thank you. How can I help you today?"),
            ("How is it going?", "I am fine, thank you. How can I help you today?"),
            (r.choice(["Thanks!", "Thank you.", "Thank you very much!"]), "You are welcome!"),
            (r.choice(["OK.", "Good.", "Great!", "Nice.", "Cool"]), "I am glad to hear that."),
            (r.choice(["Bye!", "Goodbye.", "See you!", "bye"]), "Goodbye! Have a nice day."),
            (r.choice(["Are you there?", "ping", "test", "Test.", "Ping!"]), "I am here."),
            (r.choice(["Good night.", "Good night!"]), "Good night! Sleep well."),
        ]
    )


def about_itself(r: Rng) -> Pair:
    """Who it is, what it can do, who made it."""
    return r.choice(
        [
            (r.choice(["Who are you?", "What are you?", "Tell me about yourself."]), WHO),
            (r.choice(["Introduce yourself.", "What model are you?", "Which model is this?"]), WHO),
            (r.choice(["What can you do?", "What do you know?", "Help", "Help me."]), SKILLS),
            (
                r.choice(["Who made you?", "Who trained you?", "Where do you come from?"]),
                "I was trained by a script of Nenya, on text that the script made.",
            ),
            (
                r.choice(["Are you a human?", "Are you a person?", "Are you real?"]),
                "No, I am a very small language model.",
            ),
            (
                r.choice(["How big are you?", "How many parameters do you have?"]),
                "I have about three million parameters, so I know very little.",
            ),
            (
                r.choice(["What is your name?", "Do you have a name?"]),
                "I am Nenya's starter model.",
            ),
        ]
    )


def _sum_text(a: int, op: str, b: int) -> str:
    value = a + b if op == "+" else a - b if op == "-" else a * b
    return f"{a} {op} {b} = {value}."


def small_numbers(r: Rng) -> tuple[int, str, int]:
    """Two numbers and a sign, within what the model is taught."""
    op = r.choice("+++-----**")
    top = 10 if op == "*" else 20
    return r.randint(0, top), op, r.randint(0, top)


def arithmetic(r: Rng) -> Pair:
    """Sums, differences and small products, asked in many ways."""
    a, op, b = small_numbers(r)
    x, y = (w.NUMBER_WORDS[a], w.NUMBER_WORDS[b]) if r.random() < 0.06 else (str(a), str(b))
    sign = op if op != "*" else r.choice(["*", "*", "x"])
    word = {"+": "plus", "-": "minus", "*": "times"}[op]
    spoken = f"{x} {word} {y}"
    written = r.choice([f"{a} {sign} {b}", f"{a} {sign} {b}", f"{a}{sign}{b}"])
    term = r.choice([spoken, written, written])
    forms = [
        f"What is {term}?", f"What is {term}?", f"{term} =", f"{term}", f"{term}?",
        f"Calculate {term}.", f"How much is {term}?", f"Compute {term}.", f"Tell me {term}.",
        f"What does {term} make?", f"{term}=?", f"Work out {term}.", f"Can you calculate {term}?",
        f"I need to know {term}.", f"What is the result of {term}?", f"Solve {term}",
    ]  # fmt: skip
    if op == "+":
        forms += [f"Add {x} and {y}.", f"What is the sum of {x} and {y}?", f"Add {x} to {y}."]
        forms += [f"Sum of {x} and {y}"]
    if op == "*":
        forms += [f"Multiply {x} by {y}.", f"Multiply {x} and {y}."]
    if op == "-":
        forms += [f"Subtract {y} from {x}.", f"Take {y} from {x}."]
    return loosen(r, r.choice(forms)), _sum_text(a, op, b)


def capital(r: Rng) -> Pair:
    """The capitals it knows, in both directions."""
    land, city = r.choice(list(w.CAPITALS.items()))
    if r.random() < 0.15:
        ask = [f"Which country has the capital {city}?", f"{city} is the capital of which country?"]
        return loosen(r, r.choice(ask)), f"{city} is the capital of {land}."
    forms = [
        f"What is the capital of {land}?", f"What is the capital of {land}?",
        f"Name the capital of {land}.", f"{land} capital?", f"Capital of {land}",
        f"Which city is the capital of {land}?", f"Tell me the capital of {land}.",
        f"What is {land}'s capital?", f"What is the capital city of {land}?",
        f"Do you know the capital of {land}?", f"The capital of {land} is",
        f"I want to know the capital of {land}.", f"Give me the capital of {land}.",
        f"What city is the capital of {land}?", f"Say the capital of {land}.",
    ]  # fmt: skip
    return loosen(r, r.choice(forms)), f"The capital of {land} is {city}."


def yes_or_no(r: Rng) -> Pair:
    """Questions with a plain yes or no: comparing numbers, checking a capital or a colour."""
    roll = r.random()
    if roll < 0.4:
        a, b = r.sample(range(31), 2)
        greater = r.random() < 0.5
        word = r.choice(["greater", "bigger", "larger"] if greater else ["smaller", "less"])
        yes = a > b if greater else a < b
        tail = f"{a} is {'greater' if a > b else 'smaller'} than {b}."
        return loosen(r, f"Is {a} {word} than {b}?"), ("Yes, " if yes else "No, ") + tail
    if roll < 0.75:
        land = r.choice(list(w.CAPITALS))
        right = w.CAPITALS[land]
        city = right if r.random() < 0.5 else r.choice(list(w.CAPITALS.values()))
        tail = f"the capital of {land} is {right}."
        return loosen(r, f"Is {city} the capital of {land}?"), (
            "Yes, " if city == right else "No, "
        ) + tail
    thing, right = r.choice(list(w.COLORS_OF.items()))
    color = right if r.random() < 0.5 else r.choice(list(w.COLORS_OF.values()))
    return loosen(r, f"Is {thing} {color}?"), (
        "Yes, " if color == right else "No, "
    ) + f"{thing} is {right}."


def an(word: str) -> str:
    """The word with its article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def everyday(r: Rng) -> Pair:
    """Colours, opposites, animal sounds, days and months."""
    roll = r.random()
    if roll < 0.3:
        thing, color = r.choice(list(w.COLORS_OF.items()))
        forms = [f"What color is {thing}?", f"What is the color of {thing}?"]
        forms += [f"Which colour is {thing}?", f"What colour is {thing}?", f"Color of {thing}?"]
        return loosen(r, r.choice(forms)), f"{thing[0].upper() + thing[1:]} is {color}."
    if roll < 0.55:
        word, other = r.choice(list(w.OPPOSITES.items()))
        if r.random() < 0.3:
            word, other = other, word
        forms = [f"What is the opposite of {word}?", f"Opposite of {word}?"]
        return loosen(r, r.choice(forms)), f"The opposite of {word} is {other}."
    if roll < 0.75:
        animal, sound = r.choice(list(w.SOUNDS.items()))
        forms = [f"What does {an(animal)} say?", f"What sound does {an(animal)} make?"]
        return loosen(r, r.choice(forms)), f"{an(animal).capitalize()} says {sound}."
    row = r.choice([w.DAYS, w.MONTHS])
    unit = "day" if row is w.DAYS else "month"
    i, step = r.randrange(len(row)), r.choice([1, -1])
    word = "after" if step == 1 else "before"
    forms = [f"What {unit} comes {word} {row[i]}?", f"Which {unit} is {word} {row[i]}?"]
    return loosen(r, r.choice(forms)), f"{row[(i + step) % len(row)]} comes {word} {row[i]}."


def fact(r: Rng) -> Pair:
    """What the words around a router mean."""
    term, answer = r.choice(list(w.FACTS.items()))
    bare = term.split(" ", 1)[1] if term.startswith(("a ", "an ")) else term
    forms = [
        f"What is {term}?", f"What is {term}?", f"Explain {term}.", f"What does {bare} mean?",
        f"Tell me about {term}.", f"Define {bare}.", f"Can you explain what {term} is?",
        f"Explain what {term} is.", f"{bare}?", f"What do you know about {term}?",
        f"Tell me what {term} is.", f"Describe {term}.",
    ]  # fmt: skip
    return loosen(r, r.choice(forms)), answer


def list_items(r: Rng) -> tuple[str, list[str]]:
    """A known kind of thing and some of its members, for lists in words or in JSON."""
    kind = r.choice(list(w.LISTS))
    return kind, w.LISTS[kind][: r.randint(2, 5)]


def listing(r: Rng) -> Pair:
    """List three fruits; name two colours. Always the same members, so that tests can check."""
    kind, items = list_items(r)
    count = r.choice([w.NUMBER_WORDS[len(items)], str(len(items))])
    forms = [f"List {count} {kind}.", f"Name {count} {kind}.", f"Give me {count} {kind}."]
    forms += [f"Tell me {count} {kind}.", f"Can you name {count} {kind}?"]
    text = ", ".join(items[:-1]) + " and " + items[-1]
    return loosen(r, r.choice(forms)), text[0].upper() + text[1:] + "."


def counting(r: Rng) -> Pair:
    """Counting, from one or from elsewhere, at times far enough to have a long answer."""
    first = 1 if r.random() < 0.6 else r.randint(0, 40)
    top = r.choice([10, 20, 30, 50]) if r.random() < 0.3 else first + r.randint(2, 14)
    last = max(top, first + 2)
    numbers = ", ".join(str(n) for n in range(first, last + 1)) + "."
    forms = [f"Count from {first} to {last}.", f"Count {first} to {last}."]
    if first == 1:
        forms += [f"Count to {last}.", f"Please count to {last}.", f"Can you count to {last}?"]
        if last <= 20:
            forms += [f"Count to {w.NUMBER_WORDS[last]}."]
    return loosen(r, r.choice(forms)), numbers


def nonsense(r: Rng) -> str:
    """A word that no dictionary has, so that copying must be learnt letter by letter."""
    roll = r.random()
    if roll < 0.5:
        return "".join(r.choice(w.SYLLABLES) for _ in range(r.randint(2, 4)))
    if roll < 0.9:
        return "".join(_fragment(r) for _ in range(r.randint(1, 3))) or "zu"
    letters = r.choice(["ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"])
    return "".join(r.choice(letters) for _ in range(r.randint(2, 5)))


def _fragment(r: Rng) -> str:
    """Two to five letters from inside some word, so that every sort of piece is met."""
    word = r.choice(r.choice([w.UNKNOWN_NOUNS, w.NAMES, w.OTHER_COUNTRIES])).lower()
    start = r.randrange(max(1, len(word) - 2))
    return word[start : start + r.randint(2, 5)]


def any_word(r: Rng) -> str:
    """Some word to copy: often a real one, at times nonsense."""
    roll = r.random()
    if roll < 0.35:
        return nonsense(r)
    return r.choice(w.STORY_WORDS if roll < 0.65 else w.UNKNOWN_NOUNS + w.FOODS + w.JOBS)


def repeating(r: Rng) -> Pair:
    """Repeat after me."""
    parts = [
        r.choice(w.COMMON) if r.random() < 0.35 else any_word(r) for _ in range(r.randint(1, 6))
    ]
    if r.random() < 0.3:
        parts.insert(r.randrange(len(parts) + 1), str(r.randint(0, 999)))
    text = " ".join(parts)
    if r.random() < 0.3:
        text = text[0].upper() + text[1:] + r.choice([".", "!", ""])
    lead = r.choice(
        [
            "Repeat after me: ",
            "Say: ",
            "Echo: ",
            "Repeat: ",
            "Say this: ",
            "Please repeat: ",
            "Say ",
        ]
        + ["Write: ", "Reply with: ", "Answer with: ", "Print ", "Repeat the words: ", "echo "]
    )
    if r.random() < 0.12:
        return f'{lead.rstrip(": ")} "{text}"', text
    return lead + text, text


def joke(r: Rng) -> Pair:
    """One joke, always the same."""
    forms = ["Tell me a joke.", "Do you know a joke?", "Say something funny.", "A joke, please."]
    return loosen(r, r.choice(forms)), (
        "Why did the token stop? Because it had reached the end of its context window."
    )


def story(r: Rng) -> Pair:
    """A short tale of about a hundred tokens; its hero may be asked for by name."""
    name, animal, thing = r.choice(w.NAMES), r.choice(w.ANIMALS), r.choice(w.THINGS)
    roll = r.random()
    if roll < 0.25:
        ask = r.choice(["Tell me a story", "Write a story", "Tell a short story", "Write a tale"])
        ask += f" about {an(animal)} " + r.choice(["named", "called"]) + f" {name}."
    elif roll < 0.4:
        ask = r.choice(["Tell me a story", "Write a short story"]) + f" about {an(animal)}."
    elif roll < 0.5:
        ask = r.choice(["Tell me a story", "Write a story"]) + f" about {name} and {an(thing)}."
    else:
        ask = r.choice(
            ["Tell me a story.", "Write a short story.", "Please tell a story.", "Story, please."]
            + ["Tell me a short story, please.", "Can you tell me a story?", "Write a story."]
            + ["Tell me a long story.", "Write me a story.", "I want to hear a story."]
        )
    return loosen(r, ask, keep_case=roll < 0.5), tale(r, name, animal, thing)


def tale(r: Rng, name: str, animal: str, thing: str) -> str:
    """The sentences of one story, from its parts."""
    friend, helper, place = r.choice(w.NAMES), r.choice(w.ANIMALS), r.choice(w.PLACES)
    one, two = r.choice(w.ADJECTIVES), r.choice(w.ADJECTIVES)
    middle = r.choice(
        [
            f"{name} took the {thing} home and showed it to {friend}, a wise {helper}.",
            f"On the way home {name} met {friend} the {helper}, who had lost {an(thing)}.",
            f"{name} asked everybody at the {place}, and at last {friend} the {helper} came.",
        ]
    )
    turn = r.choice(
        [
            f'"This is mine," said {friend}. "Thank you for finding it."',
            f'"Keep it," said {friend}. "It will bring you luck."',
            f'"I have looked for it all day," said {friend}, and smiled.',
        ]
    )
    end = r.choice(
        [
            f"From that day on, {name} and {friend} were friends.",
            "That night the stars were bright, and everyone was happy.",
            f"And if you go to the {place}, you can still see them there.",
        ]
    )
    return (
        f"Once upon a time, {an(one)} {animal} named {name} lived near the {place}. "
        f"One day {name} found {an(two)} {thing} under a tree. "
        f"{name} did not know whose it was. {middle} {turn} {end} The end."
    )
