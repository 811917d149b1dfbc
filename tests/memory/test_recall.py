"""What is recalled with the default embedder: long answers, other words, follow-ups, misses."""

from __future__ import annotations

import logging

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from lag_integrations import KVLogMemory
from lag_integrations.langchain import LAGChatModel
from lag_integrations.store.relevance import measure as measuring
from lag_integrations.traces.conversation import last_two
from tests.conftest import qa
from tests.store.model import hash_embedder, tiny_engine

LONG = {
    "How do I get the survey drone ready for a flight?": (
        "Charge both packs to four green lights and let them cool for ten minutes before they go "
        "in. Fit the propellers so that the grey hubs sit on the arms with grey rings, and turn "
        "each until it clicks. Switch the controller on first and the aircraft second, then wait "
        "for twelve satellites; under trees this can take some minutes. Calibrate the compass if "
        "the last take-off was more than fifty kilometres away, holding the aircraft level and "
        "then nose down. Format the card in the menu, not on a computer, since the camera wants "
        "its own folders. At last check that the return height clears the tallest mast near you; "
        "the default of thirty metres is too low at the harbour."
    ),
    "Why does the night build of the atlas keep failing?": (
        "It was the tile cache. Since the move to the new runners, the job starts in an empty "
        "folder, so the step that merges tiles found none older than a day and stopped with code "
        "17. I looked at the last nine logs and all of them end at the same line, a few seconds "
        "after the merge begins. Restoring the cache from the object store before the merge "
        "mends it, and I have put that into the pipeline with a time limit of four minutes. The "
        "first run took eleven minutes more, since everything was fetched again; the next ones "
        "were as fast as before. Two warnings about missing fonts are left, they are harmless "
        "and were there already in spring."
    ),
    "What did the people from Brennholm Dairy complain about?": (
        "They wrote three times in two weeks. First about the invoices, which name the old "
        "address in Sandvik although they told us of the move in May. Then about the driver, who "
        "came at half past five on two Saturdays, before anybody was there to open the cold room, "
        "and left the crates in the sun. The last letter is the angriest: forty litres had turned "
        "and they want them credited, with the transport. Ingrid has promised an answer by "
        "Friday. I would credit the milk, say sorry for the hours, and have the address changed "
        "in both systems, since the invoices draw it from the older one."
    ),
    "Draft the announcement of release 5.1": (
        "Here is a first version. This month we are giving you three things that many of you asked "
        "for. Maps can be drawn in layers now, and each layer remembers who changed it. Exports "
        "run in the background, so that you can go on working, and a bell tells you when the file "
        "is there. And the search box understands street names in Finnish and Estonian. We have "
        "also mended some forty smaller faults, among them the one that turned labels upside down "
        "near the poles. Whoever runs their own server should read the note on the new database "
        "column first; the update takes about two minutes for a million objects. Thank you for "
        "all your letters, we read every one of them."
    ),
}
OTHER_WORDS = [
    "What do I have to do before I fly the survey drone?",
    "the atlas night build is red again, why?",
    "What was it that Brennholm Dairy was unhappy with?",
    "Write an announcement for the release 5.1, please",
]
FACTS = {
    "Rental conditions of the Tern Road cargo bikes": "Cargo bikes cost 21 euros a day.",
    "How do I book the mirror studio at Aldergate?": "Through the form at the desk, a week ahead.",
    "On-call plan of the Farrowline parcel team": "Mette is on call until Sunday, then Jonas.",
    "Rate limit of the Gilder payroll API": "It allows 40 requests a minute for each key.",
    "Lost laptop: what staff has to do": "Call the desk at 4410 at once, it locks the disk.",
}
FOLLOW_UPS = [
    ("I would like a cargo bike of the Tern Road hub.", "And how much does it cost?"),
    ("Aldergate has a mirror studio, I think.", "How do I book it?"),
    ("A parcel of Farrowline's is missing on Saturday.", "Who is on call then?"),
    ("We import payslips through the Gilder payroll API.", "What's its rate limit?"),
    ("My laptop is gone, I have lost it on the train.", "What should I do now?"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A memory of runs with long answers, and of some with short ones."""
    with KVLogMemory(tmp_path_factory.mktemp("recall") / "m") as memory:
        for task, response in (LONG | FACTS).items():
            memory.add(qa(task, response, outcome="success"))
        memory.embed_pending()
        yield memory


def test_the_answers_are_as_long_as_agents_write():
    assert all(90 <= len(answer.split()) <= 130 for answer in LONG.values())


@pytest.mark.parametrize(
    ("query", "task"), [*zip(LONG, LONG, strict=True), *zip(OTHER_WORDS, LONG, strict=True)]
)
def test_a_long_answer_hides_no_task(runs, query, task):
    assert [log.trace.task for log in runs.recall(query)] == [task]


@pytest.mark.parametrize(("said", "task"), zip(FOLLOW_UPS, FACTS, strict=True))
def test_a_follow_up_is_searched_with_what_was_said_before(runs, said, task):
    before, query = said
    assert last_two([before, query]) == (query, before)
    assert runs.recall(query, before=before)[0].trace.task == task
    assert runs.recall(query, before=before, min_score=0.5)[0].trace.task == task


def test_a_follow_up_is_searched_behind_what_was_said_if_its_own_turn_is_all_that_fits(tmp_path):
    before, asked = FOLLOW_UPS[0]
    with KVLogMemory(tmp_path / "m") as memory:
        memory.add_many(qa(task, response) for task, response in FACTS.items())
        memory.add(qa(asked, "What do you mean?"))
        memory.embed_pending()

        def search(**settings):
            return memory.search(asked, skip=lambda trace: trace.task == asked, **settings)

        assert memory.recall(asked)
        assert search().logs == []
        assert search().nearest_miss.trace.task in FACTS
        assert search(before=before).logs[0].trace.task == next(iter(FACTS))
        assert search(before="Hello there!").nearest_miss.trace.task in FACTS


def test_a_follow_up_has_to_be_surer_whatever_the_least_score(tmp_path):
    before, asked = "the red door", "and in Lima ?"
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=0.6) as memory:
        memory.add_many([qa("the red door in Lima", "blue house"), qa("now else", "so be it")])
        memory.embed_pending()
        (whole,) = memory.recall(f"{before}\n{asked}")
        assert 0.6 < whole.relevance < 0.7 < whole.score
        found = memory.search(asked, before=before)
        assert found.logs == []
        assert found.nearest_miss.id == whole.id


def test_a_follow_up_alone_says_too_little(runs):
    found = [runs.recall(query) for _, query in FOLLOW_UPS]
    assert [bool(logs) for logs in found] == [False, False, True, True, False]


@pytest.mark.parametrize("query", ["Which stars are seen in March?", "Translate this poem."])
def test_another_subject_does_not_recall_for_the_one_before(runs, query):
    before = next(iter(LONG))
    assert runs.recall(before)
    assert runs.recall(query, before=before) == []


def test_the_nearest_miss_is_told(runs):
    found = runs.search("Which songs are sung on a drone's birthday?")
    assert found.logs == []
    assert found.nearest_miss.trace.task == next(iter(LONG))
    assert 0 < found.nearest_miss.relevance < 0.5
    assert runs.search(next(iter(LONG))).nearest_miss is None


@pytest.mark.parametrize("query", ["", "  \n", "word " * 20_000])
def test_an_empty_or_a_huge_query_recalls_nothing(runs, query):
    assert runs.recall(query) == []
    looked_at = runs.explain(query)
    assert bool(looked_at) == bool(query.strip())
    assert all("below the floor" in str(candidate.missed) for candidate in looked_at)


def fact(place, name):
    return qa(f"The harbour master of {place} is {name}.", "I have noted it.", outcome="success")


def test_the_newest_of_what_says_otherwise_comes_first(tmp_path):
    asked = "Who is the harbour master of Kestrel Point?"
    old, new = fact("Kestrel Point", "Ada Holm"), fact("Kestrel Point", "Jon Bly")
    with KVLogMemory(tmp_path / "m") as memory:

        def recalled(query):
            memory.embed_pending()
            return [log.trace for log in memory.recall(query, newest_only=True)]

        for trace in (old, fact("Aldergate", "Mia Roth"), new, fact("Sandvik", "Per Lund")):
            memory.add(trace)
        assert recalled(asked)[:2] == [new, old]
        assert "Mia Roth" in recalled("Who is the harbour master of Aldergate?")[0].task
        memory.add(old)  # said again
        assert [trace.task for trace in recalled(asked)[:2]] == [old.task, new.task]


def test_of_one_task_only_the_newest_is_given(tmp_path):
    task = "Who is the harbour master of Kestrel Point?"
    with KVLogMemory(tmp_path / "m") as memory:
        memory.add(qa(task, "It is Ada Holm."))
        new = memory.add(qa(task.lower(), "It is Jon Bly now."))
        memory.add(qa("Who is the harbour master of Aldergate?", "It is Mia Roth."))
        memory.embed_pending()
        given = memory.recall(task, newest_only=True)
        assert given[0].id == new
        assert "Ada" not in str(given)
        assert "Ada" in str(memory.recall(task))  # whoever asks for all is given all
        why = [one.missed for one in memory.explain(task) if "Ada" in str(one)]
        assert why == [("there is a newer log of the same task",)]


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ("How do I sort a list in C++?", "How do I sort a list in C?"),
        ("What is 12 * 4?", "What is 12 / 4?"),
        ("For which x is x > 3?", "For which x is x < 3?"),
        ("What are 5 euros in dollars?", "What are 5 dollars in euros?"),
        ("Is Anna older than Ben?", "Is Ben older than Anna?"),
        ("What is 10² plus 1?", "What is 102 plus 1?"),
        ("How many orders are 4! in all?", "How many orders are 4 in all?"),
        (
            "Sum this up. " + "All is well. " * 400 + "In French?",
            "Sum this up. " + "All is well. " * 400 + "In Dutch?",
        ),
    ],
)
def test_a_task_of_the_same_words_is_another(tmp_path, asked, other):
    with KVLogMemory(tmp_path / "m") as memory:
        mine = memory.add(qa(asked, "So it is."))
        newer = memory.add(qa(other, "It is otherwise."))
        memory.embed_pending()
        found = memory.recall(asked, newest_only=True, min_relevance=0.0)
        assert {log.id for log in found} == {mine, newer}


@pytest.mark.parametrize(
    "again", ["where is\nthe  Key", "WHERE IS THE KEY .", "Where is the key??"]
)
def test_a_task_is_the_same_whatever_its_case_and_spaces(tmp_path, again):
    with KVLogMemory(tmp_path / "m") as memory:
        memory.add(qa("Where is the key?", "On the hook."))
        newer = memory.add(qa(again, "In the drawer."))
        memory.embed_pending()
        assert [log.id for log in memory.recall("Where is the key?", newest_only=True)] == [newer]


class TestChatModel:
    """The same through LAGChatModel."""

    @pytest.fixture
    def model(self, runs):
        return LAGChatModel(model=tiny_engine(), memory=runs, max_tokens=2, k=1)

    def lag(self, model, *messages, **settings):
        return model.invoke(list(messages), **settings).response_metadata["lag"]

    def tasks(self, runs, lag):
        return [log.trace.task for log in runs.get(lag["log_ids"])]

    def test_a_conversation(self, runs, model):
        (before, text), task = FOLLOW_UPS[0], next(iter(FACTS))
        talk = HumanMessage(before), AIMessage("Yes, they have some."), HumanMessage(text)
        lag = self.lag(model, *talk)
        assert self.tasks(runs, lag) == [task]
        assert lag["relevance"][0] >= 0.5
        assert lag["nearest_miss"] is None

    def test_a_miss(self, runs, model):
        lag = self.lag(model, HumanMessage("Which songs are sung on a drone's birthday?"))
        assert lag["log_ids"] == []
        (nearest,) = runs.get([lag["nearest_miss"]["log_id"]])
        assert nearest.trace.task == next(iter(LONG))
        assert lag["nearest_miss"]["relevance"] < 0.5

    @pytest.mark.parametrize(
        "query", ["Rate limit of the Gilder API", lambda messages: messages[0].content]
    )
    def test_a_query_of_ones_own(self, runs, model, query):
        talk = HumanMessage("The rate limit of Gilder's payroll API"), HumanMessage("Hello there!")
        assert self.tasks(runs, self.lag(model, *talk, query=query)) == [list(FACTS)[3]]
        mine = model.model_copy(update={"query": query})
        assert self.tasks(runs, self.lag(mine, *talk)) == [list(FACTS)[3]]

    @pytest.mark.parametrize("query", [lambda messages: messages[7], lambda messages: None])
    def test_a_query_that_fails_costs_nothing(self, runs, model, query, caplog):
        with caplog.at_level(logging.WARNING):
            lag = self.lag(model, HumanMessage(next(iter(LONG))), query=query)
        assert self.tasks(runs, lag) == [next(iter(LONG))]
        assert "it is left out" in caplog.text

    @pytest.mark.parametrize("texts_at_once", [1, 2], ids=["always", "while it is measured"])
    def test_an_embedder_that_is_down_from_the_start(
        self, tmp_path, monkeypatch, texts_at_once, caplog
    ):
        def embed(texts):
            if down and len(texts) >= texts_at_once:
                raise ConnectionError(f"could not send {texts}")
            return hash_embedder(texts)

        monkeypatch.setattr(measuring, "_measured", [])
        down = True
        with KVLogMemory(tmp_path / "m", embedder=embed) as memory:
            model = LAGChatModel(model=tiny_engine(), memory=memory, max_tokens=2)
            key = memory.add(qa("Where is the secret door?", "Behind the oak."))
            asked = HumanMessage("Where is the secret door?")
            with caplog.at_level(logging.WARNING):
                lag = self.lag(model, asked)
            assert lag["log_ids"] == []
            assert "Nothing is recalled" in caplog.text
            assert "ConnectionError" in caplog.text
            assert "secret" not in caplog.text
            down = False
            memory.flush()
            assert self.lag(model, asked)["log_ids"] == [key]
