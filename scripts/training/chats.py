"""Generate short everyday conversations with the base model's own answers, to preserve its behaviour.

    python scripts/training/chats.py MODEL OUT [--count 360] [--minutes 15] [--seed 1] [--threads N]

MODEL is the base model's GGUF in 8 bits or more. OUT/chats.jsonl gets a record {"messages"} a line; a third
of the conversations have a second question. An answer that MOST tokens do not finish is left out: half an
answer would teach to stop in the middle. Prompts, their order and the random choices come from the seed;
after --minutes it stops with what there is.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from values import phrases, words
from wordings import HELD_OUT

import pigguf

MOST = 320  # tokens of an answer
TEMPERATURE = 0.7
SECOND = 0.33  # of the conversations go on

Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="the base model, a GGUF file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for chats.jsonl")
    parser.add_argument("--count", type=int, default=360, help="prompts to ask")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads; all unless given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    records = 0
    try:
        with (
            pigguf.open_model(options.model, ctx=2048, threads=options.threads) as model,
            open(options.out / "chats.jsonl", "w", encoding="utf-8") as file,
        ):
            for messages in conversations(model, options.count, options.seed):
                file.write(json.dumps({"messages": messages}) + "\n")
                file.flush()
                records += 1
                if time.monotonic() > until:
                    break
    except pigguf.PigError as error:
        sys.exit(f"error: {error.message}\n{error.hint or ''}")
    print(f"{records} conversations in {options.out}")


def conversations(model: pigguf.LocalModel, count: int, seed: int) -> Iterator[Messages]:
    """Yield the prompts with the model's answers, without those that the model did not finish."""
    rng = random.Random(seed)
    for number, prompt in enumerate(prompts(count, rng)):
        messages: Messages = []
        questions = [prompt, rng.choice(FURTHER)] if rng.random() < SECOND else [prompt]
        for question in questions:
            asked = [*messages, {"role": "user", "content": question}]
            sampling = pigguf.SamplingParams(temperature=TEMPERATURE, top_p=0.9, seed=seed * 100_000 + number)
            answer = "".join(model.chat(asked, sampling, max_tokens=MOST)).strip()
            if model.stop_reason != "end" or not answer or mentions_held_out(answer):
                break
            messages = [*asked, {"role": "assistant", "content": answer}]
        if messages:
            yield messages


def mentions_held_out(answer: str) -> bool:
    return any(phrase in answer.lower() for phrase in HELD_OUT)


def prompts(count: int, rng: random.Random) -> list[str]:
    """Yield distinct prompts: the fixed ones, and templates filled in, all templates equally often."""
    found = dict.fromkeys(WRITTEN)
    while len(found) < count:
        found[filled(rng.choice(RULES), rng)] = None
    return rng.sample(list(found), len(found))[:count]


def filled(rule: str, rng: random.Random) -> str:
    """Fill in a template: each {field} with a random word of WORDS, {number} with a number."""
    names = {name for _, name, _, _ in string.Formatter().parse(rule) if name}
    chosen = {name: rng.choice(WORDS[name]) for name in sorted(names & WORDS.keys())}
    numbers = {name: rng.randint(2, 60) for name in sorted(names - WORDS.keys())}
    return rule.format(**chosen, **numbers)


FURTHER = (
    "Can you say that in one sentence?",
    "Make it shorter, please.",
    "Can you give me an example?",
    "Thank you! Why is that?",
    "Explain it as you would to a child.",
    "What should I read next about it?",
    "Is there anything else I should know?",
    "Rewrite that as a list.",
)

RULES = (
    "What is {topic}?",
    "Explain {topic} in simple words.",
    "Explain {topic} in two sentences.",
    "Give me three facts about {topic}.",
    "Why is {topic} important?",
    "What is the difference between {topic} and {other}?",
    "List five {things}.",
    "Name {things} that begin with different letters.",
    "Write a short poem about {theme}.",
    "Write a haiku about {theme}.",
    "Write a very short story about {theme}.",
    "Write a limerick about {theme}.",
    "Describe {theme} in one paragraph.",
    "How do I {task}?",
    "Give me tips to {task}.",
    "What do I need to {task}?",
    "Write a polite email to {person} about {matter}.",
    "Write a short message to {person} about {matter}.",
    "Rewrite this more politely: {sentence}",
    "Correct the mistakes in this sentence: {wrong}",
    "Summarize in one sentence: {passage}",
    "What is the main idea of this text? {passage}",
    "Translate to {language}: {sentence}",
    "How do you say “{phrase}” in {language}?",
    "What is {a} + {b}?",
    "What is {a} times {b}?",
    "What is {a} minus {b}?",
    "I have {a} apples and buy {b} more. How many do I have?",
    "A book costs {a} dollars and a pen costs {b} dollars. What do they cost together?",
    "Write a Python function that {code}.",
    "Show me a Python example that {code}.",
    "What is the capital of {country}?",
    "Tell me something about {country}.",
    "What is the opposite of “{word}”?",
    "Use the word “{word}” in a sentence.",
    "Give me three synonyms for “{word}”.",
    "Is this sentence positive or negative? {opinion}",
    "What would you answer to this? {opinion}",
)

WORDS = {
    "topic": phrases(
        "photosynthesis, gravity, inflation, evolution, electricity, a volcano, a rainbow, democracy, the "
        "water cycle, a black hole, the internet, a vaccine, recycling, machine learning, a glacier, the "
        "moon, an atom, DNA, a database, the Renaissance, climate change, a solar eclipse, erosion, an "
        "operating system, music theory, the immune system, a supply chain, the stock market, insurance, "
        "an earthquake"
    ),
    "other": phrases(
        "magnetism, weather, energy, a comet, a planet, a republic, a virus, a spreadsheet, physics"
    ),
    "things": phrases(
        "healthy snacks, European countries, musical instruments, farm animals, board games, winter "
        "sports, kinds of trees, famous scientists, rivers, programming languages, spices, household "
        "chores, hobbies, planets, birds"
    ),
    "theme": phrases(
        "the sea, autumn leaves, an old clock, a cat on a roof, rain at night, the first snow, a lost "
        "letter, a lighthouse, the market in the morning, friendship, a robot that learns to cook, a "
        "train journey, the stars, a garden in spring, a forgotten library"
    ),
    "task": phrases(
        "boil an egg, learn a new language, save money, sleep better, plant tomatoes, prepare for an "
        "exam, remove a stain from a shirt, bake bread, write a CV, train for a long run, back up my "
        "computer, clean a window, make new friends, stay focused at work, repair a flat bicycle tyre, "
        "pack for a week's holiday"
    ),
    "person": phrases(
        "my teacher, my neighbour, a customer, my boss, an old friend, the landlord, a colleague"
    ),
    "matter": phrases(
        "a delayed parcel, being ill tomorrow, a birthday party, a broken heater, changing an "
        "appointment, a lost umbrella, thanking them for their help, a noisy dog"
    ),
    "sentence": phrases(
        "Give me the report now., You are late again., I do not like this soup., The weather is nice "
        "today., Where is the station?, Send me the money., Your idea makes no sense., My brother lives "
        "in a small village., We are going to the cinema tonight."
    ),
    "wrong": phrases(
        "He go to school every day., She don't like apples., I has two brother., Their going to the park "
        "yesterday., The childs is playing outside., Me and him was late., Its a beautiful day isnt it., "
        "We was very tired of the walk."
    ),
    "passage": phrases(
        "Bees visit flowers to collect nectar and carry pollen from one plant to the next. Without them "
        "many crops would give much smaller harvests.|The city closed the old bridge to cars last year. "
        "Since then more people walk to work, and the shops along the river sell more than before.|A "
        "kettle of water takes longer to boil high in the mountains? No: it boils sooner, at a lower "
        "temperature, because the air presses less on it.|The museum was founded by a sailor who had "
        "brought home shells from all over the world. Today it has forty thousand of them.|Regular "
        "exercise strengthens the heart, improves sleep and lifts the mood. Even a short walk a day makes "
        "a difference.|The printing press made books cheap. Within fifty years there were more books in "
        "Europe than in all the centuries before.",
        "|",
    ),
    "language": words("French Spanish German Italian"),
    "phrase": phrases(
        "good morning, thank you, how are you?, see you tomorrow, where is the bathroom?, I am hungry"
    ),
    "code": phrases(
        "adds two numbers, reverses a string, counts the words in a text, checks whether a number is "
        "prime, finds the largest number in a list, reads a file line by line, removes duplicates from a "
        "list, prints a multiplication table, sorts a list of names, converts Celsius to Fahrenheit, "
        "computes a factorial"
    ),
    "country": words(
        "France Japan Brazil Egypt Canada Norway India Kenya Mexico Australia Portugal Greece Poland Peru"
    ),
    "word": words(
        "happy ancient brave quickly silence generous fragile journey difficult bright careful enormous"
    ),
    "opinion": phrases(
        "The food was cold and the waiter was rude.|I loved every minute of this film!|The hotel was "
        "clean, and the staff were very kind.|This phone stopped working after two days.|I am so proud of "
        "my daughter today.|I feel a bit lonely in the new town.|I cannot decide which job to take.",
        "|",
    ),
}

WRITTEN = (
    "Hello!",
    "Hi, who are you?",
    "Good morning. How can you help me?",
    "What can you do?",
    "Tell me a joke.",
    "Tell me a fun fact.",
    "What should I cook tonight?",
    "Why is the sky blue?",
    "Why do leaves change colour in autumn?",
    "Who wrote Romeo and Juliet?",
    "How many days are there in a leap year?",
    "How far away is the moon?",
    "What are the primary colours?",
    "What is the boiling point of water?",
    "Which planet is the largest?",
    "Who was Marie Curie?",
    "What happened in 1969?",
    "How does a bicycle stay upright?",
    "Is a tomato a fruit or a vegetable?",
    "Give me a name for a small bakery.",
    "Suggest a title for a book about the sea.",
    "Plan a day in a big city for me.",
    "I am nervous about an interview. What should I do?",
    "How much sleep does an adult need?",
    "What is a good present for a ten-year-old?",
    "Give me a riddle with its solution.",
    "Write one sentence that uses the words river, lamp and bread.",
    "Convert 5 kilometres to metres.",
    "Put these words in alphabetical order: pear, apple, cherry, banana.",
    "Which of these is not an animal: dog, table, horse, fish?",
    "Continue the series: 2, 4, 6, 8,",
    "What is half of 84?",
    "What does the command ls do?",
    "What is HTML used for?",
    "Write a SQL query that selects all rows of a table called books.",
    "Explain what a for loop does.",
    "What is the past tense of “go”?",
    "Spell the word “necessary”.",
    "What is the plural of “mouse”?",
    "Give me a motto for the week.",
)


if __name__ == "__main__":
    main()
