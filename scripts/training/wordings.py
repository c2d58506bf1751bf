"""Wordings of the retrieval records (data only).

HELD_OUT lists the subjects that the evaluations ask about and that no training record may use: see "locker"
in pigguf/evals/passkey_prompts.py. In the templates, {value} is the answer, and the other fields name its
subject.
"""

from __future__ import annotations

from dataclasses import dataclass

HELD_OUT = ("locker", "combination", "opens with", "opens the")


@dataclass(frozen=True)
class Needle:
    """A hidden number in the paper's manner, as raw text: header, filler, needle, filler, question."""

    header: str
    needle: str
    question: str
    value: str  # a pattern of values.py


PAPER = Needle(
    header="There is an important info hidden inside a lot of irrelevant text. "
    "Find it and memorize them. I will quiz you about the important information there.",
    needle="The pass key is {value}. Remember it. {value} is the pass key.",
    question="What is the pass key? The pass key is",
    value="#####",
)

NEEDLES = (
    PAPER,
    Needle(
        "Somewhere in the following text a magic number is mentioned. Keep it in mind.",
        "One of the special magic numbers is {value}.",
        "Which magic number does the text mention? The magic number is",
        "#######",
    ),
    Needle(
        "Read the text below. It contains an access code that you will need afterwards.",
        "Please note that the access code is {value}.",
        "Question: What is the access code?\nAnswer: The access code is",
        "####-####",
    ),
    Needle(
        "A ticket number is hidden in this text.",
        "The number on the ticket was {value}.",
        "The number on the ticket was",
        "######",
    ),
    Needle(
        "Below is a long text. One sentence in it gives a telephone number.",
        "You can reach the office by telephone at {value}.",
        "To reach the office by telephone, one has to dial",
        "0### ######",
    ),
    Needle(
        "The following pages tell, among other things, when the bridge was finished.",
        "The bridge was finished in the year {value}.",
        "Q: In which year was the bridge finished?\nA: The bridge was finished in the year",
        "####",
    ),
    Needle(
        "Watch out for the serial number in what follows.",
        "The serial number of the machine reads {value}.",
        "What does the serial number of the machine read? It reads",
        "@@-####-@",
    ),
    Needle(
        "Here is a text. The secret word appears in it once.",
        "The secret word is {value}; do not tell anybody.",
        "The secret word mentioned in the text is",
        "word word word",
    ),
    Needle(
        "This document says what the account's balance is.",
        "After the last payment the balance of the account was {value} dollars.",
        "According to the document, the balance of the account was",
        "##,###",
    ),
    Needle(
        "In the text there is a registration mark of a car. Remember it.",
        "The car that left had the registration mark {value}.",
        "Registration mark of the car:",
        "@@ ### @@",
    ),
)

# {subject} is a city, a thing or a person; many of them in a text, all asked for in one line.
MANY_NEEDLES = (
    (
        "One of the special magic numbers for {subject} is: {value}.",
        "The special magic number for {subject}",
        "#######",
    ),
    ("The pass key of {subject} is {value}.", "The pass key of {subject}", "#####"),
    ("For {subject} the reference is {value}.", "The reference for {subject}", "@@@####"),
    (
        "The station at {subject} was given the call sign {value}.",
        "The call sign of the station at {subject}",
        "@##@@",
    ),
    (
        "In {subject} the temperature reached {value} degrees that day.",
        "The temperature in {subject}",
        "##.#",
    ),
    ("The order for {subject} came to {value} pieces.", "The pieces ordered for {subject}", "#,###"),
)

FILLERS = (
    ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again."),
    ("It rains in the hills.", "The train is late.", "Nobody minds.", "The tea is hot.", "So it goes on."),
    (
        "A dog barks in the yard.",
        "The postman walks by.",
        "Two children play with a ball.",
        "Then it is evening.",
        "The lamps are lit.",
        "Someone sings.",
    ),
    (
        "We counted the sheep.",
        "We counted them again.",
        "The number did not change.",
        "The wind blew from the west.",
    ),
    ("Snow falls on the field.", "The mill stands still.", "A crow sits on the fence.", "It is cold."),
    (
        "Water boils in the kettle.",
        "Bread lies on the table.",
        "The clock strikes.",
        "There is nothing to do.",
    ),
)


@dataclass(frozen=True)
class Kind:
    """A kind of fact, with templates of statements, questions and answers."""

    subject: str  # a list of values.py
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


KINDS = (
    Kind(
        "things",
        "#####",
        (
            "The access code for the {subject} is {value}.",
            "To enter the {subject} you need the code {value}.",
        ),
        ("What is the access code for the {subject}?", "Which code do you need to enter the {subject}?"),
        ("The access code for the {subject} is {value}.", "You need the code {value}."),
    ),
    Kind(
        "people",
        "0### ######",
        (
            "{subject} can be reached by telephone at {value}.",
            "The telephone number of {subject} is {value}.",
        ),
        ("What is {subject}'s telephone number?", "Under which number can {subject} be reached?"),
        ("{subject}'s telephone number is {value}.", "{subject} can be reached at {value}."),
    ),
    Kind(
        "people",
        "city",
        ("{subject} was born in {value}.", "{subject} grew up in the city of {value}."),
        ("Where does {subject} come from?", "Which city is {subject} from, according to the text?"),
        ("{subject} comes from {value}.", "According to the text, {subject} is from {value}."),
    ),
    Kind(
        "people",
        "job",
        ("{subject} works as a {value}.", "By profession {subject} is a {value}."),
        ("What does {subject} do for a living?", "What is {subject}'s profession?"),
        ("{subject} works as a {value}.", "{subject}'s profession: {value}."),
    ),
    Kind(
        "things",
        "word word word",
        (
            "The password for the {subject} is: {value}.",
            "Whoever wants to use the {subject} must say “{value}”.",
        ),
        ("What is the password for the {subject}?", "Which words must be said to use the {subject}?"),
        ("The password for the {subject} is “{value}”.", "The words are: {value}."),
    ),
    Kind(
        "things",
        "person",
        ("{value} is responsible for the {subject}.", "The one who looks after the {subject} is {value}."),
        ("Who is responsible for the {subject}?", "Who looks after the {subject}?"),
        ("{value} is responsible for the {subject}.", "The {subject} is looked after by {value}."),
    ),
    Kind(
        "people",
        "colour",
        ("{subject}'s favourite colour is {value}.", "Of all colours {subject} likes {value} best."),
        ("What is {subject}'s favourite colour?", "Which colour does {subject} like best?"),
        ("{subject}'s favourite colour is {value}.", "{subject} likes {value} best."),
    ),
    Kind(
        "people",
        "pet",
        ("{subject} has a {value}.", "The animal that {subject} keeps is a {value}."),
        ("Which animal does {subject} keep?", "What pet does {subject} have?"),
        ("{subject} keeps a {value}.", "It is a {value}."),
    ),
    Kind(
        "cities",
        "time",
        ("The train to {subject} leaves at {value}.", "At {value} there is a train to {subject}."),
        ("When does the train to {subject} leave?", "At what time is there a train to {subject}?"),
        ("The train to {subject} leaves at {value}.", "There is a train to {subject} at {value}."),
    ),
    Kind(
        "cities",
        "#######",
        (
            "One of the special magic numbers for {subject} is: {value}.",
            "The magic number of {subject} is {value}.",
        ),
        (
            "What is the magic number for {subject} mentioned in the text?",
            "Tell me the magic number of {subject}.",
        ),
        ("The magic number for {subject} is {value}.", "The magic number mentioned in the text is {value}."),
    ),
    Kind(
        "things",
        "@@-####-@",
        (
            "The serial number of the {subject} is {value}.",
            "On the {subject} the number {value} is engraved.",
        ),
        (
            "What is the serial number of the {subject}?",
            "Give me the number that is engraved on the {subject}.",
        ),
        ("The serial number of the {subject} is {value}.", "The number on the {subject} is {value}."),
    ),
    Kind(
        "people",
        "sentence",
        ("{subject} left this note: “{value}”", "On the wall {subject} had written: “{value}”"),
        ("What did {subject} write?", "Quote exactly what {subject} wrote."),
        ("{subject} wrote: “{value}”", "“{value}”"),
    ),
    Kind(
        "events",
        "date",
        ("The {subject} will take place on {value}.", "They agreed that the {subject} should be on {value}."),
        ("When will the {subject} take place?", "On which day is the {subject}?"),
        ("The {subject} will take place on {value}.", "The {subject} is on {value}."),
    ),
    Kind(
        "events",
        "room ###",
        ("For the {subject} everybody should come to {value}.", "The {subject} is held in {value}."),
        ("Where is the {subject} held?", "To which room should everybody come for the {subject}?"),
        ("The {subject} is held in {value}.", "Everybody should come to {value}."),
    ),
    Kind(
        "things",
        "$##.##",
        ("The price of the {subject} is {value}.", "For the {subject} they asked {value}."),
        ("How much does the {subject} cost?", "What is the price of the {subject}?"),
        ("The {subject} costs {value}.", "The price of the {subject} is {value}."),
    ),
    Kind(
        "cities",
        "1###",
        (
            "The bridge in {subject} was built in the year {value}.",
            "In {value} the great bridge of {subject} was built.",
        ),
        (
            "In which year was the bridge in {subject} built?",
            "How old is the bridge in {subject}: when was it built?",
        ),
        ("The bridge in {subject} was built in {value}.", "It was built in the year {value}."),
    ),
    Kind(
        "things",
        "place",
        ("The key of the {subject} lies {value}.", "Somebody has put the {subject}'s key {value}."),
        ("Where is the key of the {subject}?", "Where must I look for the {subject}'s key?"),
        ("The key of the {subject} is {value}.", "Look for it {value}."),
    ),
    Kind(
        "cities",
        "person",
        ("The mayor of {subject} is {value}.", "In {subject} the people elected {value} as mayor."),
        ("Who is the mayor of {subject}?", "Whom did the people of {subject} elect as mayor?"),
        ("The mayor of {subject} is {value}.", "The people of {subject} elected {value}."),
    ),
    Kind(
        "people",
        "### ####",
        (
            "The membership number of {subject} is {value}.",
            "In the register {subject} has the number {value}.",
        ),
        ("What is the membership number of {subject}?", "Which number does {subject} have in the register?"),
        ("{subject} has the number {value}.", "The membership number of {subject} is {value}."),
    ),
    Kind(
        "people",
        "dish",
        ("For dinner {subject} ordered {value}.", "{subject} never eats anything but {value}."),
        ("What does {subject} eat?", "Which dish is mentioned together with {subject}?"),
        ("{subject} eats {value}.", "The dish is {value}."),
    ),
)

OPENINGS = (
    "Read this text carefully; I have questions about it.",
    "Here is a document.",
    "Below is a long text. Some facts are hidden in it.",
    "I will give you a text and then ask about it.",
    "Please study the following.",
    "Text:",
    "Answer from the following document only.",
    "The following notes are in no order.",
)
CLOSINGS = (
    "{question}",
    "Question: {question}",
    "Now, from the text above: {question}",
    "That was the text. {question}",
    "My first question: {question}",
)
BEFORE = (
    "{question} You find the answer in this text:",
    "Find out from the text below: {question}",
    "I want to know one thing first. {question} Here is the text.",
)
FURTHER = ("{question}", "{question}", "And {lowered}", "Next question: {question}", "Thanks. {question}")
BRIEF = (" Answer briefly.", " Only the answer, please.", " Give just the value.")
UNKNOWN = ("The text does not say.", "That is not in the text.", "I cannot find that in the text.")

# Copying: {start} are the first words of a sentence of the document, {text} what is asked for.
COPY_RAW = (
    'The text above says, from "{start}" on:',
    'Quoted from the text, beginning with "{start}":',
    'Here again, word by word, is the passage that starts with "{start}":',
)
COPY_SENTENCE = (
    'Repeat the sentence that begins with "{start}".',
    'Quote in full the sentence of the text that starts with "{start}".',
    'One sentence begins with the words "{start}". How does it go?',
)
COPY_ON = (
    'Repeat the passage that begins with "{start}" up to "{end}".',
    'Quote the text word for word from "{start}" to "{end}".',
)
COPY_NEXT = (
    'What comes right after the sentence "{before}"?',
    'Which sentence follows this one: "{before}"',
    'Quote the sentence that comes directly after "{before}"',
)
COPY_COMPLETE = (
    'Complete this sentence from the text: "{start} ..."',
    'How does the sentence "{start} ..." go on in the text?',
)

# Tables: {key} is a row's name, {column} a column's.
TABLE_OPENINGS = (
    "Here is a list.",
    "Look up some values in this table.",
    "The register, as of today:",
    "Use the following data.",
    "Data:",
)
TABLE_ASKED = (
    "What is the {column} of {key}?",
    "Give me the {column} for {key}.",
    "Look up the {column} of {key}.",
    "And {key}: which {column}?",
    "Which {column} is listed for {key}?",
)
TABLE_ANSWERED = ("{value}", "The {column} of {key} is {value}.", "{key}: {value}")
TABLE_REVERSED = ("Which entry has the {column} {value}?", "Whose {column} is {value}?")
TABLE_LINES = ("Write down the lines of {keys}.", "Copy the entries of {keys} from the list.")
