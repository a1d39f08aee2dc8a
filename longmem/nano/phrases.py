"""Words and sentence patterns of the dialogues; in pairs of pools the second one is reserved."""

from __future__ import annotations

from functools import lru_cache


def part(words: tuple[str, ...], unseen: bool) -> tuple[str, ...]:
    """Every fifth word of a list is reserved; this gives the reserved ones or the others."""
    return tuple(word for index, word in enumerate(words) if (index % 5 == 4) == unseen)


@lru_cache(maxsize=2)
def syllables(unseen: bool) -> tuple[str, ...]:
    """Onset, vowel and coda combined; about a seventh of those with a coda is reserved."""
    return tuple(
        onset + vowel + coda
        for i, onset in enumerate(ONSETS)
        for j, vowel in enumerate(VOWELS)
        for k, coda in enumerate(CODAS)
        if (coda != "" and (3 * i + 5 * j + k) % 7 == 0) == unseen
    )


ONSETS = (
    "b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "r", "s", "st",
    "t", "tr", "v", "w", "z", "th",
)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ei")
CODAS = ("", "", "l", "n", "r", "s", "m", "k", "nd", "rt", "x", "sk", "lm")
TOWN_ENDINGS = ("ton", "burg", "ville", "stad", "port", "field", "mouth", "ford", "haven", "wick")
GIVEN_NAMES = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas",
    "Karin", "Leo", "Maria", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tanja", "Viktor", "Wanda",
    "Yara", "Zoe", "Amir", "Bianca", "Carlos", "Dora", "Emil", "Fatima", "Georg", "Hanna", "Ivan",
    "Julia", "Kemal", "Lina", "Marco", "Nora", "Oscar", "Petra", "Rafael",
)
CITIES = (
    "Lisbon", "Oslo", "Madrid", "Vienna", "Krakow", "Dublin", "Turin", "Geneva", "Bergen", "Porto",
    "Prague", "Seville", "Hamburg", "Ghent", "Riga", "Athens", "Lyon", "Boston", "Denver",
    "Tallinn", "Kyoto", "Lima", "Quito", "Nairobi", "Accra", "Cairo", "Hanoi", "Osaka", "Perth",
    "Leeds",
)
ADJECTIVES = (
    "silver", "quiet", "golden", "broken", "amber", "hidden", "gentle", "frozen", "crimson",
    "lonely", "bright", "hollow", "velvet", "distant", "rusty", "northern", "sleepy", "wild",
    "purple", "ancient", "little", "early", "green", "brave", "misty", "copper", "western", "tiny",
    "proud", "marble", "secret", "warm", "dusty", "polar", "humble", "stormy", "blue", "wooden",
    "lucky", "salty",
)
NOUNS = (
    "harbour", "lantern", "river", "falcon", "garden", "window", "mountain", "violin", "feather",
    "compass", "orchard", "kettle", "anchor", "meadow", "castle", "pepper", "island", "mirror",
    "thunder", "cabin", "rabbit", "candle", "bridge", "forest", "magnet", "sailor", "barrel",
    "comet", "ladder", "walnut", "desert", "pillow", "engine", "parrot", "crystal", "wagon",
    "tunnel", "maple", "rocket", "sparrow", "button", "glacier", "saddle", "ribbon", "otter",
    "temple", "basket", "cedar", "puzzle", "whistle", "dragon", "canyon", "needle", "tiger",
    "lemon", "drummer", "valley", "monkey", "shadow", "beacon",
)
PHRASE_SHAPES = (
    "{adjective} {one} and {two}", "the {adjective} {one}", "{one} before the {two}",
    "no {one} without a {two}", "every {one} needs a {adjective} {two}",
    "a {adjective} {one} in the {two}", "{adjective} {one}", "where the {one} meets the {two}",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)
RELATIONS = (
    "sister", "brother", "cousin", "uncle", "aunt", "neighbour", "friend", "colleague", "boss",
    "grandmother", "grandfather", "nephew", "niece", "daughter", "son", "mother", "father", "wife",
    "husband", "flatmate",
)
_DOORS = (
    "locker", "garage", "office", "gym", "front door", "safe", "alarm", "archive", "cellar",
    "studio", "boat house", "storage room", "gate", "letter box", "suitcase", "bike lock",
)
_PAPERS = (
    "badge", "booking", "ticket", "customer", "parking permit", "order", "passport", "member",
    "invoice", "library card",
)
_LOCKS = ("laptop", "server", "wallet", "backup", "router", "tablet")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "code": (
        *(f"{door} code" for door in _DOORS), *(f"{paper} number" for paper in _PAPERS),
        "phone pin", "card pin", "bank pin",
    ),
    "passkey": (
        "pass key", *(f"{lock} pass key" for lock in _LOCKS), "access key", "recovery key",
        "licence key", "wifi key",
    ),
    "person": (
        "dentist", "doctor", "landlord", "lawyer", "manager", "piano teacher", "mechanic",
        "accountant", "coach", "tutor", "baker", "plumber", "best friend", "tenant", "hairdresser",
        "business partner", "swimming teacher", "gardener",
    ),
    "city": (
        "home town", "birth place", "holiday town", "conference city", "favourite city",
        "wedding town", "next stop", "training city", "dream city", "first stop",
    ),
    "title": (
        "favourite tea", "team name", "boat name", "favourite book", "band name", "favourite cafe",
        "project title", "favourite song", "favourite game", "horse name", "company name",
        "favourite film",
    ),
    "phrase": (
        "motto", "secret phrase", "watchword", "slogan", "voice command", "toast", "opening line",
        "password hint",
    ),
    "date": (
        "birthday", "wedding day", "exam date", "moving day", "deadline", "flight date",
        "visit day", "opening day", "name day",
    ),
}
FACTS = (
    (
        "{P} {a} is {v}.", "{P} {a} is {v}.", "{P} {a} is {v}. Remember it.",
        "Please remember that {p} {a} is {v}.", "Just so you know, {p} {a} is {v}.",
        "For the record: {p} {a} is {v}.", "By the way, {p} {a} is {v}.", "{v} is {p} {a}.",
        "Note this down: {p} {a}, {v}.", "I found out that {p} {a} is {v}.", "{P} {a}: {v}",
        "The {a} of {e} is {v}.", "Could you keep in mind that {p} {a} is {v}?",
        "As for {p} {a}, it is {v}.", "They gave us {p} {a} today, {v}.",
        "If anyone asks for {p} {a}, say {v}.", "{v}, that is {p} {a}.", "For {e} the {a} is {v}.",
        "Write down {v} as {p} {a}.", "I will need {p} {a} later. It is {v}.",
        "Remember this: {p} {a} is {v}.", "Remember {v}, it is {p} {a}.",
        "Keep in mind: {p} {a} is {v}.", "Please keep {p} {a}: {v}.",
        "Please note that {p} {a} is {v}.", "Save this, {p} {a} is {v}.",
        "Save {v} as the {a} of {e}.", "Do not forget that {p} {a} is {v}.",
        "Do not forget {p} {a}, {v}.", "Never forget: {p} {a} is {v}.",
        "I want you to know that {p} {a} is {v}.", "You should know that {p} {a} is {v}.",
        "You will be asked for {p} {a}. It is {v}.", "I was told that {p} {a} is {v}.",
        "I heard that {p} {a} is {v}.", "I just learned {p} {a}: {v}.",
        "It seems that {p} {a} is {v}.", "We agreed that {p} {a} is {v}.",
        "We chose {v} as {p} {a}.", "So {p} {a} is {v}.", "Okay, {p} {a} is {v}.",
        "Well, {p} {a} is {v}, I think.", "Today I got {p} {a}. It is {v}.",
        "This is {p} {a}: {v}.", "This is the {a} of {e}: {v}.", "My notes say {p} {a} is {v}.",
        "Let me tell you {p} {a}. It is {v}.", "In case you need it, {p} {a} is {v}.",
        "In case someone asks, {p} {a} is {v}.", "{e} has a new note: the {a} is {v}.",
        "One thing about {e}: the {a} is {v}.", "Here you go, {p} {a} is {v}.",
        "Listen, {p} {a} is {v}.", "Put {v} down for {p} {a}, please.",
        "You may need {p} {a} one day, it is {v}.", "{P} {a} is {v}, all the same.",
    ),
    (
        "Do not lose this: {p} {a} is {v}.", "It turns out that {p} {a} is {v}.",
        "Keep {v} for me, it is {p} {a}.", "You may want to know that {p} {a} is {v}.",
        "In case I forget, {p} {a} is {v}.", "Here is {p} {a}: {v}.",
        "We said that {p} {a} is {v}.", "So {p} {a} is {v}, all right?",
    ),
)
UPDATES = (
    (
        "{P} {a} has changed, it is now {v}.", "Update: {p} {a} is now {v}.",
        "Correction: {p} {a} is {v} now.", "From today {p} {a} is {v}.",
        "{P} {a} was changed to {v}.", "Forget the old one, {p} {a} is now {v}.",
        "We changed {p} {a}, the new one is {v}.", "The {a} of {e} is {v} now.",
        "{P} {a} is no longer the same, it is {v} now.", "I was wrong about {p} {a}, it is {v}.",
        "There is a new value for {p} {a}: {v}.", "{P} {a} is now {v}.", "{P} {a} is {v} now.",
        "Now {p} {a} is {v}.", "{P} {a} has been changed to {v}.",
        "{P} {a} has been changed. It is {v} now.", "They changed {p} {a} to {v}.",
        "Someone changed {p} {a}, now it is {v}.", "The new {a} of {e} is {v}.",
        "New {a} for {e}: {v}.", "The old {a} of {e} is not valid any more, the new one is {v}.",
        "Change: {p} {a} is now {v}.", "News about {p} {a}: it is now {v}.",
        "Sorry, {p} {a} is {v} now.", "Please update {p} {a} to {v}.",
        "Please change {p} {a} to {v}.", "Replace {p} {a}, it is {v} from now on.",
        "Starting today {p} {a} is {v}.", "From now on {p} {a} is {v}.", "{v} is {p} {a} now.",
        "{v} is now the {a} of {e}.", "Not the old one any more: {p} {a} is {v} now.",
    ),
    (
        "Change of plan: {p} {a} is {v} now.", "A new {a} for {e}: {v}.",
        "Scratch that, {p} {a} has been changed to {v}.", "As of now {p} {a} is {v}.",
        "{P} {a} is not the old one any more, now it is {v}.",
    ),
)
QUESTIONS = (
    (
        "What is {p} {a}?", "What is {p} {a}?", "Do you remember {p} {a}?",
        "Can you tell me {p} {a}?", "Remind me, what is {p} {a}?", "I forgot {p} {a}. What is it?",
        "{P} {a}?", "What did I say {p} {a} is?", "Tell me {p} {a}, please.",
        "Do you still know {p} {a}?", "What is the {a} of {e}?", "What was {p} {a} again?",
        "Somebody asks for {p} {a}. What do I say?", "I am looking for {p} {a}.",
        "What's {p} {a}?", "Do you know {p} {a}?", "Can you look up the {a} of {e}?",
        "Give me {p} {a}, please.", "Give me the {a} of {e}.", "I need the {a} of {e}.",
        "I need to know {p} {a}.", "Could you remind me of {p} {a}?", "Would you tell me {p} {a}?",
        "Could you tell me what {p} {a} is?", "Can you say what {p} {a} is?",
        "Do you have {p} {a}?", "Do you have an idea what the {a} of {e} is?",
        "Have you got {p} {a} for me?", "Did I tell you {p} {a}?",
        "What did I tell you about {p} {a}?", "Which one is {p} {a}?", "Which {a} does {e} have?",
        "Which is the {a} of {e}?", "What {a} did I give you for {e}?",
        "For {e}, what is the {a}?", "And {p} {a}?", "And what is {p} {a}?", "So what is {p} {a}?",
        "So, {p} {a}?", "Now I need {p} {a}.", "Please tell me {p} {a}.",
        "Please give me {p} {a} again.", "Please repeat {p} {a}.", "Please find {p} {a}.",
        "Repeat {p} {a} for me.", "Say {p} {a} again.", "Look up {p} {a}, will you?",
        "Find {p} {a} for me, please.", "Let me know {p} {a}.", "I cannot remember {p} {a}.",
        "I can't recall {p} {a}. Can you?", "I do not know {p} {a} any more.",
        "My memory is bad. What is {p} {a}?", "Help me, what is {p} {a}?",
        "Once more, what is {p} {a}?", "One more time: {p} {a}?",
        "Quick question: what is {p} {a}?", "I wrote {p} {a} down somewhere. What was it?",
        "There was {p} {a}. What was it?", "You noted {p} {a}. What is it?",
        "What have you noted as {p} {a}?", "Is there {p} {a} in your notes?",
        "Check {p} {a} for me.", "Could I have {p} {a}?", "May I have {p} {a}?",
        "I would like to know {p} {a}.", "I want {p} {a} now, please.",
        "Time for {p} {a}. What is it?", "They want to know {p} {a}.", "Someone needs {p} {a}.",
    ),
    (
        "Could you give me {p} {a}?", "I need {p} {a} now.", "Any idea what {p} {a} is?",
        "Say {p} {a} once more, please.", "Which {a} did I note for {e}?",
        "Please look up {p} {a} for me.",
    ),
)
ACKS = (
    "Noted.", "Got it.", "Okay, I will remember that.", "Thanks, noted.", "Understood.",
    "All right.", "I will keep that in mind.", "Okay.", "Sure, saved.", "Thank you, I have it.",
    "Good to know.", "I wrote it down.",
)
SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant with a good memory.",
    "Answer briefly.", "Remember what the user tells you and answer with the value only.",
    "You help one user over many days. Be short and exact.",
)
THINGS = (
    "bread", "a lamp", "the old chair", "a new coat", "soup", "the car", "a bicycle",
    "some flowers", "the roof", "a letter", "the kitchen", "coffee", "a map", "the fence",
    "a cake", "the radio", "two tickets", "the piano", "a puppy", "the report",
)
PLACES = (
    "the market", "the park", "the station", "the beach", "work", "the library", "the museum",
    "the lake", "the office", "the bakery", "the airport", "school", "the theatre", "the village",
    "the hospital", "the shop around the corner",
)
DEEDS = (
    "bought", "painted", "lost", "found", "repaired", "forgot", "sold", "cleaned", "borrowed",
    "carried", "ordered", "washed", "looked at", "talked about", "broke", "wrapped",
)
TIMES = (
    "yesterday", "this morning", "last week", "today", "in the evening", "on Monday", "on Friday",
    "before lunch", "after work", "last summer", "two days ago", "at night",
)
MOODS = (
    "tired", "happy", "late", "hungry", "nervous", "busy", "calm", "surprised", "cold", "proud",
    "bored", "excited",
)
TOPICS = (
    "the weather", "football", "cooking", "old films", "gardening", "the news", "music", "trains",
    "holidays", "chess", "birds", "politics", "painting", "stars",
)
SMALL_TALK = (
    "{who} {did} {thing} at {place} {when}.", "I {did} {thing} {when}.",
    "{when} I was at {place} and felt {how}.", "{who} is {how} because of {thing}.",
    "we walked {n} minutes to {place}.", "have you heard about {topic}?",
    "I keep thinking about {topic}.", "there were {n} people at {place} {when}.",
    "{who} called me {when}, quite {how}.", "it was a long day, and I am {how} now.",
    "do you like {topic}?", "let us talk about {topic} for a while.",
    "{who} wants to go to {place} with me.", "I am not sure what to do with {thing}.",
    "the way to {place} was closed {when}.", "nobody told me that {who} {did} {thing}.",
    "it is raining, so I stay away from {place}.",
    "{who} and I had an argument about {topic} {when}.", "I paid {n} euros for {thing}.",
    "what do you think about {topic}?", "the idea was to meet at {place}, but {who} was {how}.",
    "my plan for the day is to look after {thing}.",
)
SMALL_REPLIES = (
    "that sounds nice.", "I see.", "oh, why is that?", "I hope you are not too {how}.",
    "many people like {topic}.", "{topic} can be fun.", "maybe you can rest a little {when}.",
    "that must have been a surprise.", "tell me more about it.", "I am glad you went to {place}.",
    "that is a good question.", "it is easy to feel {how} then.", "how did {who} like it?",
    "a walk to {place} always helps.", "I would take care of {thing} first.",
    "well, such things happen.", "you could ask {who} about {topic}.",
    "in any case, enjoy the day.", "that is a lot of work for one day.",
    "let us hope for the best.",
)
